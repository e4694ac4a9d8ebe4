package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/arcboxlabs/arcbox-go"
)

// bulk is how much is sent to measure throughput, in bytes.
const bulk = 32 << 20

// networks measures what goes through the network of containers. The programs in the guest are those of busybox that
// move much at a time: httpd by sendfile, wget --post-file by one write.
func (b *suite) networks() error {
	return b.withMachine(func(rt *arcbox.Runtime) error {
		n := &networkBench{suite: b, rt: rt, took: make(chan time.Duration, 1)}
		host := httptest.NewServer(n)
		defer host.Close()
		services := map[uint16]string{7000: host.Listener.Addr().String()}
		if _, err := rt.CreateNetwork(b.ctx, arcbox.NetworkSpec{Name: "bench", Services: services}); err != nil {
			return err
		}
		web, err := n.container(arcbox.ContainerSpec{
			Name: "web", ShmSize: 2 * bulk, Ports: []arcbox.PortMapping{{ContainerPort: 80}},
			Args: busybox("sh", "-c", fmt.Sprintf("cd /dev/shm && busybox echo hello >index.html && "+
				"busybox dd if=/dev/zero bs=1048576 count=%d 2>/dev/null | busybox tr '\\0' a >big && exec busybox httpd -f -h /dev/shm -p 80", bulk>>20)),
		})
		if err != nil {
			return err
		}
		client, err := n.container(arcbox.ContainerSpec{Args: busybox("sleep", "1000000")})
		if err != nil {
			return err
		}
		n.url = fmt.Sprintf("http://127.0.0.1:%d/", web.Ports[0].HostPort)
		if err := rt.WaitFor(b.ctx, web.ID, arcbox.ForListeningPort(80)); err != nil {
			return err
		}
		for _, m := range []struct {
			name string
			do   func() (time.Duration, error)
		}{
			{"tcp_egress_mb_s", func() (time.Duration, error) {
				return n.exec(web.ID, "wget", "-q", "-O", "/dev/null", "--post-file=/dev/shm/big", "http://"+arcbox.HostName+":7000/")
			}},
			{"tcp_ingress_mb_s", func() (time.Duration, error) {
				return n.exec(client.ID, "wget", "-q", "-O", "/dev/null", "http://"+arcbox.HostName+":7000/")
			}},
			{"tcp_publish_mb_s", n.fetch},
			{"tcp_between_containers_mb_s", func() (time.Duration, error) {
				n.took <- 0
				began := time.Now()
				_, err := n.exec(client.ID, "wget", "-q", "-O", "/dev/null", "http://web/big")
				return time.Since(began), err
			}},
		} {
			var all []float64
			for range max(3, b.rounds) {
				d, err := m.do()
				if err != nil {
					return fmt.Errorf("%s: %w", m.name, err)
				}
				all = append(all, float64(bulk)/1e6/d.Seconds())
			}
			report(m.name, "MB/s", all)
		}
		return n.requests(web.ID)
	})
}

type networkBench struct {
	*suite
	rt   *arcbox.Runtime
	url  string             // of web, by its published port
	took chan time.Duration // by a request of a container to the host
}

// ServeHTTP takes and sends bulk bytes on the host.
func (n *networkBench) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	if r.Method == http.MethodPost {
		_, _ = io.CopyBuffer(struct{ io.Writer }{io.Discard}, r.Body, make([]byte, 256<<10))
	} else {
		w.Header().Set("Content-Length", strconv.Itoa(bulk))
		buf := make([]byte, 256<<10)
		for range bulk / len(buf) {
			_, _ = w.Write(buf)
		}
	}
	n.took <- time.Since(began)
}

func busybox(args ...string) []string { return append([]string{"busybox"}, args...) }

// container starts a container, which ends with the machine.
func (n *networkBench) container(spec arcbox.ContainerSpec) (i arcbox.ContainerInfo, err error) {
	spec.Image, spec.Networks = imageName, []arcbox.NetworkAttachment{{Network: "bench"}}
	if i, err = n.rt.CreateContainer(n.ctx, spec, arcbox.CreateOptions{}); err != nil {
		return i, err
	}
	if err = n.rt.StartContainer(n.ctx, i.ID); err != nil {
		return i, err
	}
	return n.rt.InspectContainer(n.ctx, i.ID)
}

// exec runs busybox in a container and returns how long the host took for the request.
func (n *networkBench) exec(id string, args ...string) (time.Duration, error) {
	p, err := n.rt.Exec(n.ctx, id, arcbox.ExecSpec{Args: busybox(args...)}, arcbox.ExecOptions{Stderr: os.Stderr})
	if err != nil {
		return 0, err
	}
	exit, err := p.Wait(n.ctx)
	if err == nil && exit.Code != 0 {
		err = fmt.Errorf("%s ended with %d", args[0], exit.Code)
	}
	if err != nil {
		return 0, err
	}
	return <-n.took, nil
}

// fetch gets bulk bytes through the published port.
func (n *networkBench) fetch() (time.Duration, error) {
	began := time.Now()
	resp, err := http.Get(n.url + "big")
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, resp.Body, make([]byte, 256<<10))
	return time.Since(began), err
}

// requests measures connections and small requests.
func (n *networkBench) requests(id string) error {
	var all []float64
	for range 20 * n.rounds {
		began := time.Now()
		c, err := n.rt.Dial(n.ctx, id, "tcp", ":80")
		if err != nil {
			return err
		}
		all = append(all, ms(time.Since(began)))
		c.Close()
	}
	report("dial_ms", "ms", all)
	const clients, span = 8, 3 * time.Second
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	var done atomic.Int64
	var wg sync.WaitGroup
	began := time.Now()
	for range clients {
		wg.Go(func() {
			for time.Since(began) < span {
				resp, err := client.Get(n.url)
				if err != nil {
					continue
				}
				if _, err := io.Copy(io.Discard, resp.Body); err == nil {
					done.Add(1)
				}
				resp.Body.Close()
			}
		})
	}
	wg.Wait()
	report("http_rps", "1/s", []float64{float64(done.Load()) / time.Since(began).Seconds()})
	return nil
}
