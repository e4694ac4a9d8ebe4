package main

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// pack writes a file or a directory as a tar archive, under the last part of its path, or without it where the path ends
// with "/.". Links are kept as they are, sockets are left out.
func pack(w io.Writer, root string) error {
	base := filepath.Base(root)
	if bare := strings.HasSuffix(filepath.ToSlash(root), "/.") || root == "."; bare {
		base = ""
	} else if abs, err := filepath.Abs(root); err == nil {
		base = filepath.Base(abs)
	}
	tw := tar.NewWriter(w)
	err := filepath.WalkDir(root, func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		in := path.Join(base, filepath.ToSlash(rel))
		if in == "." || in == "" || e.Type()&fs.ModeSocket != 0 {
			return nil
		}
		return packFile(tw, name, in, e)
	})
	if err != nil {
		return fmt.Errorf("pack %s: %w", root, err)
	}
	return tw.Close()
}

func packFile(tw *tar.Writer, name, in string, e fs.DirEntry) error {
	info, err := e.Info()
	if err != nil {
		return err
	}
	link := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		if link, err = os.Readlink(name); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return err
	}
	h.Name, h.Format = in, tar.FormatPAX
	if err := tw.WriteHeader(h); err != nil || !info.Mode().IsRegular() {
		return err
	}
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.CopyN(tw, f, h.Size)
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("%s became shorter while it was read", name)
	}
	return err
}

// unpack writes the files of an archive, which may be hostile, into a directory that is there. Nothing is written outside
// of it: an os.Root keeps links from leading there. Devices and pipes are left out.
func unpack(archive io.Reader, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("unpack into %s, which must be a directory: %w", dir, err)
	}
	defer root.Close()
	tr := tar.NewReader(archive)
	modes := map[string]fs.FileMode{} // of directories, given when all is in them
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("unpack into %s: %w", dir, err)
		}
		if sparse(h) {
			return fmt.Errorf("unpack %q into %s: a file with holes can be larger than any disk", h.Name, dir)
		}
		name := path.Clean(strings.TrimLeft(h.Name, "/"))
		if name == "." {
			continue
		}
		if h.Typeflag == tar.TypeDir {
			modes[name] = h.FileInfo().Mode().Perm()
		}
		if err := unpackFile(root, name, h, tr); err != nil {
			return fmt.Errorf("unpack %q into %s: %w", h.Name, dir, err)
		}
	}
	for name, mode := range modes {
		if err := root.Chmod(name, mode); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("unpack %q into %s: %w", name, dir, err)
		}
	}
	return nil
}

// sparse tells of a file whose holes take no place in the archive. The archives of containers have none.
func sparse(h *tar.Header) bool {
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return h.Typeflag == tar.TypeGNUSparse
}

func unpackFile(root *os.Root, name string, h *tar.Header, r io.Reader) error {
	if parent := path.Dir(name); parent != "." {
		if err := root.MkdirAll(parent, 0o755); err != nil {
			return err
		}
	}
	if h.Typeflag == tar.TypeDir {
		if info, err := root.Lstat(name); err == nil && info.IsDir() {
			return nil
		}
		return root.Mkdir(name, 0o700)
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeSymlink, tar.TypeLink:
	default:
		return nil
	}
	if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	switch h.Typeflag {
	case tar.TypeSymlink:
		return root.Symlink(h.Linkname, name)
	case tar.TypeLink:
		return root.Link(path.Clean(strings.TrimLeft(h.Linkname, "/")), name)
	}
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, h.FileInfo().Mode().Perm())
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}
