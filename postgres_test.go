package arcbox_test

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go"
	"github.com/arcboxlabs/arcbox-go/internal/image/imagetest"
)

// postgresImage returns the name of an image with PostgreSQL and curl.
func postgresImage(t *testing.T, rt *arcbox.Runtime) string {
	t.Helper()
	const name = "postgres:test"
	if _, err := rt.InspectImage(testContext(t), name); err != nil {
		img, err := imagetest.Postgres(t)
		require.NoError(t, err)
		load(t, rt, img)
	}
	return name
}

// clusterRecipe changes when the databases of the same image would be others.
const clusterRecipe = "1"

// postgresVolume makes a volume with empty databases, which trust everybody. They are made once, by a container, and kept
// with the other things that tests need.
func postgresVolume(t *testing.T, rt *arcbox.Runtime, name string) {
	t.Helper()
	ctx := testContext(t)
	image := postgresImage(t, rt)
	info, err := rt.InspectImage(ctx, image)
	require.NoError(t, err)
	cache, err := os.UserCacheDir()
	require.NoError(t, err)
	key := hex.EncodeToString([]byte(clusterRecipe)) + info.ID[len(info.ID)-16:]
	data, err := imagetest.Cached(ctx, filepath.Join(cache, "arcbox-test", "roots", "cluster-"+key+".tar"), func() ([]byte, error) {
		t.Cleanup(func() { require.NoError(t, rt.RemoveVolume(context.Background(), "cluster")) })
		r := run(t, rt, arcbox.ContainerSpec{
			Image: image, User: "postgres", Mounts: []arcbox.Mount{{Type: arcbox.MountVolume, Source: "cluster", Target: "/var/lib/postgresql"}},
			Args: sh("cd /var/lib/postgresql && /usr/lib/postgresql/*/bin/initdb -D data -A trust --no-sync --wal-segsize=1 --locale=C && " +
				"echo host all all all trust >> data/pg_hba.conf"),
		}, arcbox.RunOptions{})
		require.Zero(t, r.exit.Code, r.stdout+r.stderr)
		var out bytes.Buffer
		err := rt.ExportVolume(ctx, "cluster", &out)
		return out.Bytes(), err
	})
	require.NoError(t, err)
	_, err = rt.CreateVolume(ctx, arcbox.VolumeSpec{Name: name})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, rt.RemoveVolume(context.Background(), name)) })
	require.NoError(t, rt.ImportVolume(ctx, name, bytes.NewReader(data)))
}

// TestPostgres has a database in one container used from another by name, and by its socket from the program. What was
// committed is there for another container after the first was killed.
func TestPostgres(t *testing.T) {
	rt := shared.get(t)
	ctx := testContext(t)
	postgresVolume(t, rt, "pgdata")
	newNetwork(t, rt, arcbox.NetworkSpec{Name: "data", Internal: true})
	on := []arcbox.NetworkAttachment{{Network: "data", Aliases: []string{"database"}}}
	db := func(name string) string {
		id := serve(t, rt, arcbox.ContainerSpec{
			Name: name, Image: postgresImage(t, rt), User: "postgres", Networks: on, StopSignal: "INT",
			Mounts: []arcbox.Mount{{Type: arcbox.MountVolume, Source: "pgdata", Target: "/var/lib/postgresql"}},
			Args: sh("exec /usr/lib/postgresql/*/bin/postgres -D /var/lib/postgresql/data -c listen_addresses='*' " +
				"-c unix_socket_directories=/tmp -c shared_buffers=16MB -c jit=off"),
		})
		require.NoError(t, rt.WaitFor(ctx, id, arcbox.ForLog("ready to accept connections", 1)))
		return id
	}
	app := start(t, rt, arcbox.ContainerSpec{Image: postgresImage(t, rt), Networks: []arcbox.NetworkAttachment{{Network: "data"}}})
	query := func(host, q string) string {
		t.Helper()
		out, code := in(t, rt, app.ID, fmt.Sprintf(`/usr/lib/postgresql/*/bin/psql -qtA -h %s -U postgres -c %q`, host, q))
		require.Zero(t, code, out)
		return out
	}
	first := db("db")
	query("db", "create table goods (name text, price int); insert into goods select 'no. ' || n, n from generate_series(1, 1000) n")
	require.Equal(t, "1000|500500\n", query("database", "select count(*), sum(price) from goods"))

	conn, err := rt.Dial(ctx, first, "unix", "/tmp/.s.PGSQL.5432")
	require.NoError(t, err)
	defer conn.Close()
	_, err = conn.Write([]byte("\x00\x00\x00\x08\x04\xd2\x16\x2f")) // asks whether it speaks TLS
	require.NoError(t, err)
	answer := make([]byte, 1)
	_, err = io.ReadFull(conn, answer)
	require.NoError(t, err)
	require.Equal(t, "N", string(answer))

	require.NoError(t, rt.KillContainer(ctx, first, "KILL"))
	_, err = rt.WaitContainer(ctx, first, arcbox.WaitOptions{})
	require.NoError(t, err)
	db("db2")
	require.Equal(t, "1000|500500\n", query("db2", "select count(*), sum(price) from goods"))
}

// TestPublishedNginx fetches from a web server through its published port, from the program, and by curl from another
// container, by name and by way of the host.
func TestPublishedNginx(t *testing.T) {
	rt := shared.get(t)
	ctx := testContext(t)
	newNetwork(t, rt, arcbox.NetworkSpec{Name: "web", IPv6: true})
	on := []arcbox.NetworkAttachment{{Network: "web"}}
	_, err := rt.CreateContainer(ctx, arcbox.ContainerSpec{
		Name: "nginx", Image: shared.realPrograms(t), Args: []string{"nginx", "-c", "/etc/nginx.conf"}, StopSignal: "QUIT", Networks: on,
		Tmpfs: []arcbox.Tmpfs{{Path: "/var/lib/nginx"}}, Ports: []arcbox.PortMapping{{ContainerPort: 80}},
	}, arcbox.CreateOptions{})
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, rt.RemoveContainer(testContext(t), "nginx", arcbox.RemoveOptions{Force: true}))
	})
	page := bytes.Repeat([]byte("a page of a certain length\n"), 40000)
	writeFile(t, rt, "nginx", "/etc/nginx.conf", fmt.Sprintf(nginxConfig, "listen [::]:80; location /page { root /srv; }"))
	writeFile(t, rt, "nginx", "/srv/page", string(page))
	require.NoError(t, rt.StartContainer(ctx, "nginx"))
	require.NoError(t, rt.WaitFor(ctx, "nginx", arcbox.ForHTTP(80, "/", 0)), logOf(t, rt, "nginx"))
	info, err := rt.InspectContainer(ctx, "nginx")
	require.NoError(t, err)
	at := netip.AddrPortFrom(info.Ports[0].HostIP, info.Ports[0].HostPort).String()

	client := &http.Client{Transport: &http.Transport{}, Timeout: testTimeout}
	defer client.CloseIdleConnections()
	for range 20 { // over one connection
		require.Equal(t, "one\n", get(t, client, "http://"+at+"/"))
	}
	require.Equal(t, string(page), get(t, client, "http://"+at+"/page"))

	newNetwork(t, rt, arcbox.NetworkSpec{Name: "elsewhere", Services: map[uint16]string{8080: at}})
	both := start(t, rt, arcbox.ContainerSpec{Image: postgresImage(t, rt), Networks: append(on, arcbox.NetworkAttachment{Network: "elsewhere"})})
	out, code := in(t, rt, both.ID, `set -e; for url in http://nginx/page "-6 http://nginx/page" http://`+arcbox.HostName+`:8080/page; do
		curl -sSf --max-time 60 $url | md5sum; done; curl --max-time 5 http://`+at+`/ 2>/dev/null || echo refused`)
	require.Zero(t, code, out)
	sum := fmt.Sprintf("%x  -\n", md5.Sum(page))
	require.Equal(t, sum+sum+sum+"refused\n", out, "the loopback address of the host is not the container's")
}
