package network

import (
	"context"
	"net"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

func twinManager(t *testing.T, dir string) *Manager {
	t.Helper()
	m, err := New(Config{Dir: dir, Taken: func() []netip.Prefix { return nil }})
	require.NoError(t, err)
	t.Cleanup(m.Close)
	return m
}

func TestTwins(t *testing.T) {
	dir := t.TempDir()
	m := twinManager(t, dir)
	dial := func(context.Context, Flow) (net.Conn, error) { return nil, errs.ErrUnavailable }
	shop, err := m.Create(Spec{Name: "shop", Dial: dial, Internal: true})
	require.NoError(t, err)
	saved := m.Save(map[string]bool{shop.ID: true, "gone": true})
	require.Len(t, saved, 1)
	require.True(t, saved[0].Programmed)

	a, err := m.Twin(saved[0], "child", false, true)
	require.NoError(t, err)
	require.Equal(t, "shop-child", a.Spec.Name)
	require.Equal(t, shop.Spec.Subnet, a.Spec.Subnet)
	require.NotEqual(t, shop.VLAN, a.VLAN)
	require.NotNil(t, a.Spec.Dial)
	again, err := m.Twin(saved[0], "child", false, true)
	require.NoError(t, err)
	require.Equal(t, a.ID, again.ID)
	_, err = m.Create(Spec{Name: "shop-other"})
	require.NoError(t, err)
	b, err := m.Twin(saved[0], "other", false, false)
	require.NoError(t, err)
	require.NotEqual(t, "shop-other", b.Spec.Name, "that is somebody else's")
	_, err = m.Reserve(Owner{ID: "c", Name: "c"}, []Attachment{{Network: a.ID, IPv4: a.Spec.Gateway.Next()}})
	require.NoError(t, err)
	_, err = m.Reserve(Owner{ID: "d", Name: "d"}, []Attachment{{Network: shop.ID, IPv4: a.Spec.Gateway.Next()}})
	require.NoError(t, err, "the address is free beside the twin")
	m.Release("c")
	m.Close()

	// A later program knows those that last, without their functions.
	m = twinManager(t, dir)
	later, err := m.Inspect("shop-child")
	require.NoError(t, err)
	require.Equal(t, a.ID, later.ID)
	_, err = m.Inspect(b.ID)
	require.ErrorIs(t, err, errs.ErrNotFound)
	require.True(t, m.networks[a.ID].orphan)
	m.RemoveTwins(func(machine string) bool { return machine == "child" })
	_, err = m.Inspect("shop-child")
	require.ErrorIs(t, err, errs.ErrNotFound)
	_, err = m.Inspect("shop")
	require.NoError(t, err)

	// Where nobody of the snapshot's is, the networks have their own names.
	m = twinManager(t, "")
	own, err := m.Twin(saved[0], "default", true, true)
	require.NoError(t, err)
	require.Equal(t, "shop", own.Spec.Name)
	require.True(t, m.networks[own.ID].orphan, "nothing leaves it without its functions")
	def, err := m.Inspect(DefaultName)
	require.NoError(t, err)
	same, err := m.Twin(Saved{ID: "x", Spec: def.Spec}, "default", true, true)
	require.NoError(t, err)
	require.Equal(t, def.ID, same.ID)
	other := def.Spec
	other.Subnet, other.Gateway = netip.MustParsePrefix("10.9.0.0/24"), netip.MustParseAddr("10.9.0.1")
	beside, err := m.Twin(Saved{ID: "x", Spec: other}, "default", true, true)
	require.NoError(t, err)
	require.Equal(t, "default-default", beside.Spec.Name)

	for name, s := range map[string]Spec{"no name": {}, "no subnet": {Name: "x"}, "bad rule": {Name: "x", Egress: []Rule{{Ports: "z"}}}} {
		_, err := m.Twin(Saved{ID: "y", Spec: s}, "m", true, true)
		require.Error(t, err, name)
	}
}
