package api

import (
	"errors"
	"net/http"
	"time"
)

// MaxBody is the size of the largest request body that a server takes, in
// bytes.
const MaxBody = 1 << 20

// IdleTimeout is how long a server keeps a connection that no call uses, if it is not
// told otherwise. A client should keep it for less time, so that no call meets its
// end. It is short because dockerd (28.5, for one) forgets a connection for each
// "docker version" (docker-py#3251), and a server has room for so many.
const IdleTimeout = 5 * time.Second

// Code tells programs what went wrong. Codes do not change within a major
// version.
type Code string

// The codes.
const (
	CodeBadRequest       Code = "bad_request"
	CodeForbidden        Code = "forbidden"
	CodeNotFound         Code = "not_found"
	CodeMethodNotAllowed Code = "method_not_allowed"
	CodeConflict         Code = "conflict"
	CodeChanged          Code = "changed"
	CodeTooLarge         Code = "too_large"
	CodeInternal         Code = "internal"
)

// Errors that a caller decides on: an *Error is the one of its code, for
// errors.Is.
var (
	// ErrBadRequest marks a request that can never succeed as it is.
	ErrBadRequest = errors.New("bad request")

	// ErrForbidden marks a caller whom the gate does not belong to.
	ErrForbidden = errors.New("forbidden")

	// ErrNotFound marks an id, or a call, that does not exist.
	ErrNotFound = errors.New("not found")

	// ErrMethodNotAllowed marks a method that the path does not have.
	ErrMethodNotAllowed = errors.New("method not allowed")

	// ErrConflict marks an address that is taken.
	ErrConflict = errors.New("conflict")

	// ErrChanged marks a change to something that is no longer as the caller has
	// read it.
	ErrChanged = errors.New("changed")

	// ErrTooLarge marks a body of more than MaxBody bytes.
	ErrTooLarge = errors.New("request body too large")

	// ErrInternal marks a failure of the gate.
	ErrInternal = errors.New("internal error")
)

// codes is the one table of codes, HTTP status and sentinels. Its last row is
// for all else.
var codes = [...]struct {
	code   Code
	status int
	err    error
}{
	{CodeBadRequest, http.StatusBadRequest, ErrBadRequest},
	{CodeForbidden, http.StatusForbidden, ErrForbidden},
	{CodeNotFound, http.StatusNotFound, ErrNotFound},
	{CodeMethodNotAllowed, http.StatusMethodNotAllowed, ErrMethodNotAllowed},
	{CodeConflict, http.StatusConflict, ErrConflict},
	{CodeChanged, http.StatusPreconditionFailed, ErrChanged},
	{CodeTooLarge, http.StatusRequestEntityTooLarge, ErrTooLarge},
	{CodeInternal, http.StatusInternalServerError, ErrInternal},
}

// Codes returns all codes.
func Codes() []Code {
	out := make([]Code, len(codes))
	for i, c := range codes {
		out[i] = c.code
	}
	return out
}

// Status returns the HTTP status that goes with the code: 500 for an unknown
// one.
func (c Code) Status() int {
	for _, row := range codes {
		if row.code == c {
			return row.status
		}
	}
	return http.StatusInternalServerError
}

// CodeOf returns the code that goes with an HTTP status. An unknown status is a
// bad request if it is 4xx, else an internal error.
func CodeOf(status int) Code {
	for _, row := range codes {
		if row.status == status {
			return row.code
		}
	}
	if status/100 == 4 {
		return CodeBadRequest
	}
	return CodeInternal
}

// Error is the body of an answer that is not a success.
type Error struct {
	// Message is one line for people.
	Message string `json:"message"`
	Code    Code   `json:"code"`
}

// Error returns the message.
func (e *Error) Error() string { return e.Message }

// Is says whether target is the error of e's code: ErrConflict for
// CodeConflict. A code that this version does not know is an internal error.
func (e *Error) Is(target error) bool {
	for _, row := range codes {
		if row.code == e.Code {
			return target == row.err
		}
	}
	return target == ErrInternal
}
