package api

import (
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
)

func TestEveryCodeHasItsStatusAndItsError(t *testing.T) {
	sentinels := []error{ErrBadRequest, ErrForbidden, ErrNotFound, ErrMethodNotAllowed, ErrConflict, ErrChanged, ErrTooLarge, ErrInternal}
	if len(sentinels) != len(Codes()) {
		t.Fatalf("%d codes, %d sentinels", len(Codes()), len(sentinels))
	}
	for i, code := range Codes() {
		if got := CodeOf(code.Status()); got != code {
			t.Errorf("the status of %s, %d, is that of %s", code, code.Status(), got)
		}
		err := fmt.Errorf("add: %w", &Error{Code: code, Message: "no"})
		for j, sentinel := range sentinels {
			if errors.Is(err, sentinel) != (i == j) {
				t.Errorf("errors.Is(%s, %v) is %v", code, sentinel, i != j)
			}
		}
	}
}

func TestWhatThisVersionDoesNotKnowIsMappedByItsClass(t *testing.T) {
	for status, want := range map[int]Code{
		http.StatusTeapot:             CodeBadRequest,
		http.StatusServiceUnavailable: CodeInternal,
		http.StatusMovedPermanently:   CodeInternal,
	} {
		if got := CodeOf(status); got != want {
			t.Errorf("CodeOf(%d) = %s, want %s", status, got, want)
		}
	}
	if got := Code("new").Status(); got != 500 {
		t.Errorf("the status of an unknown code is %d", got)
	}
	if !errors.Is(&Error{Code: "new"}, ErrInternal) {
		t.Error("an unknown code is no internal error")
	}
}

func TestSchemasHaveTheFieldsOfTheTypes(t *testing.T) {
	type schema struct {
		Properties map[string]yaml.Node
		Required   []string
	}
	var document struct {
		Info       struct{ Version string }
		Components struct{ Schemas map[string]schema }
	}
	if err := yaml.Unmarshal([]byte(OpenAPI()), &document); err != nil {
		t.Fatal(err)
	}
	if document.Info.Version != Version {
		t.Errorf("the document is of version %s, the API of %s", document.Info.Version, Version)
	}
	types := []any{Info{}, NetworkDriver{}, PortDriver{}, PortSpec{}, PortStatus{}, Connection{}, Policy{}, Error{}}
	if len(document.Components.Schemas) != len(types) {
		t.Errorf("%d schemas, %d types", len(document.Components.Schemas), len(types))
	}
	for _, value := range types {
		typ := reflect.TypeOf(value)
		var fields, required []string
		for i := range typ.NumField() {
			name, options, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
			fields = append(fields, name)
			if options != "omitempty" {
				required = append(required, name)
			}
		}
		s, ok := document.Components.Schemas[typ.Name()]
		if !ok {
			t.Errorf("no schema %s", typ.Name())
			continue
		}
		var properties []string
		for name := range s.Properties {
			properties = append(properties, name)
		}
		for _, list := range [][]string{fields, required, properties, s.Required} {
			slices.Sort(list)
		}
		if diff := cmp.Diff(fields, properties); diff != "" {
			t.Errorf("fields of %s (-type +schema):\n%s", typ.Name(), diff)
		}
		if diff := cmp.Diff(required, s.Required); diff != "" {
			t.Errorf("required fields of %s (-type +schema):\n%s", typ.Name(), diff)
		}
	}
	code := document.Components.Schemas["Error"].Properties["code"]
	var enum struct{ Enum []Code }
	if err := code.Decode(&enum); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Codes(), enum.Enum); diff != "" {
		t.Errorf("codes (-table +schema):\n%s", diff)
	}
}
