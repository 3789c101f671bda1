// Package image makes the root directory of a container's image out of programs of
// this machine: so that tests and the benchmark need no registry. It knows nothing of
// engines; `docker import` takes the archive as it is.
package image

import (
	"archive/tar"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"strings"
)

// directories are there in every Root; engines mount over most of them.
var directories = []string{"bin", "etc", "proc", "sys", "dev", "tmp", "lib64"}

// Root is what is in a root directory. The zero value has its empty directories alone.
type Root struct {
	// Programs are executables of this machine by their path in the image, as
	// "bin/busybox". The shared libraries that they need come along.
	Programs map[string]string

	// Links are symbolic links by their path in the image, and what they hold.
	Links map[string]string
}

// Write writes the root directory as a tar archive.
func (r Root) Write(w io.Writer) error {
	archive := tar.NewWriter(w)
	for _, dir := range directories {
		if err := archive.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: int64(fs.ModePerm)}); err != nil {
			return err
		}
	}
	for name, path := range r.files() {
		if err := addFile(archive, name, path); err != nil {
			return fmt.Errorf("put %s into the image: %w", path, err)
		}
	}
	for name, to := range r.Links {
		if err := archive.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}); err != nil {
			return err
		}
	}
	return archive.Close()
}

// files are the programs and their libraries, by their paths in the image.
func (r Root) files() map[string]string {
	files := map[string]string{}
	for name, program := range r.Programs {
		files[name] = program
		// A static program has no libraries, and is an error to ldd.
		out, _ := exec.Command("ldd", program).Output()
		for _, word := range strings.Fields(string(out)) {
			if strings.HasPrefix(word, "/") {
				files[word[1:]] = word
			}
		}
	}
	return files
}

func addFile(archive *tar.Writer, name, path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if err := archive.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: info.Size()}); err != nil {
		return err
	}
	_, err = io.Copy(archive, file)
	return err
}
