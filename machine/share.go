package machine

import (
	"context"
	"net"
	"path/filepath"
	"strings"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/bootfs"
	"github.com/arcboxlabs/arcbox-go/internal/share"
	"github.com/arcboxlabs/arcbox-go/vm"
)

// hostTag names the directory that a machine has as a whole, see Config.SharedDir.
const hostTag = "arcbox.host"

// Share makes a directory of the host, or a file system, available in the guest and returns the id by which a container
// mounts it. release gives it back; a second call does nothing. What cannot be shared is ErrInvalid. What lies in
// Config.SharedDir is there already, where the driver can.
func (m *Machine) Share(ctx context.Context, src share.Source) (id string, release func(), err error) {
	for _, s := range m.spec.Shares {
		if path, ok := below(s.Path, src); ok && s.Tag == hostTag {
			return api.HostShare + path, func() {}, nil
		}
	}
	return m.shares.Add(ctx, src)
}

// Offer makes a Unix socket in the guest whose connections dial makes on the host, and returns the id by which a container
// mounts it. release closes it, with its connections; a second call does nothing. They end with the machine.
func (m *Machine) Offer(ctx context.Context, dial func(context.Context) (net.Conn, error)) (id string, release func(), err error) {
	return m.socks.Add(ctx, dial)
}

// below returns where in a directory a source lies, as a relative path with slashes, links resolved.
func below(dir string, src share.Source) (string, bool) {
	if src.FS != nil {
		return "", false
	}
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return "", false
	}
	path, err := filepath.EvalSymlinks(src.Path)
	if err != nil {
		return "", false // who serves it says why
	}
	rel, err := filepath.Rel(dir, path)
	if err != nil || !filepath.IsLocal(rel) {
		return "", false
	}
	return filepath.ToSlash(rel), true
}

// addShares lets the machine have Config.SharedDir, and Rosetta where there is one.
func (cfg *Config) addShares(spec *vm.Spec) {
	can := cfg.Driver.Capabilities()
	spec.Rosetta = can.Rosetta
	if cfg.SharedDir == "" || !can.Shares {
		return
	}
	spec.Shares = append(spec.Shares, vm.Share{Tag: hostTag, Path: cfg.SharedDir})
	spec.Cmdline = strings.TrimSpace(spec.Cmdline + " " + bootfs.HostParameter + "virtiofs:" + hostTag)
}

// openShare opens the stream of a share.
func (m *Machine) openShare(ctx context.Context, req api.ShareRequest) (share.Stream, error) {
	s, err := m.agent.Share(ctx, req)
	if err != nil {
		return nil, err
	}
	return s, nil
}
