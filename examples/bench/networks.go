package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/arcboxlabs/arcbox-go"
)

// bulk is how much is sent to measure throughput, in bytes.
const bulk = 32 << 20

// networks measures what goes through the network of containers and, in turn with it, through QEMU's own user network by
// another interface of the same machine, on Linux. The programs in the guest are those of busybox that move much at a time:
// httpd by sendfile, wget --post-file by one write.
func (b *suite) networks() error {
	cfg := b.config()
	var slirp *route
	if runtime.GOOS == "linux" {
		var err error
		if slirp, err = b.slirp(&cfg); err != nil {
			return err
		}
	}
	return b.withMachineOf(cfg, func(rt *arcbox.Runtime) error {
		n := &networkBench{suite: b, rt: rt, took: make(chan time.Duration, 1)}
		host := httptest.NewServer(n)
		defer host.Close()
		services := map[uint16]string{7000: host.Listener.Addr().String()}
		if _, err := rt.CreateNetwork(b.ctx, arcbox.NetworkSpec{Name: "bench", Services: services}); err != nil {
			return err
		}
		on := []arcbox.NetworkAttachment{{Network: "bench"}}
		web, err := n.web("", arcbox.ContainerSpec{Name: "web", Networks: on, Ports: []arcbox.PortMapping{{ContainerPort: 80}}})
		if err != nil {
			return err
		}
		client, err := n.container(arcbox.ContainerSpec{Args: busybox("sleep", "1000000"), Networks: on})
		if err != nil {
			return err
		}
		ours := &route{web: web.ID, host: "http://" + arcbox.HostName + ":7000/", url: fmt.Sprintf("http://127.0.0.1:%d/", web.Ports[0].HostPort)}
		paths := []*route{ours}
		if slirp != nil {
			port := host.Listener.Addr().String()
			slirp.host = "http://10.0.2.2" + port[strings.LastIndexByte(port, ':'):] + "/"
			web, err := n.web(slirpSetup, arcbox.ContainerSpec{Name: "slirp", Network: arcbox.NetworkMachine, Privileged: true})
			if err != nil {
				return err
			}
			slirp.web, slirp.prefix = web.ID, "qemu_user_"
			paths = append(paths, slirp)
		}
		if err := n.compare(paths); err != nil {
			return err
		}
		return n.alone(ours, client.ID)
	})
}

// route is a way between the host and a container.
type route struct {
	prefix string // of the names of what is measured
	web    string // id of the container with a server
	host   string // address of the host's server as that has it
	url    string // of the container's server, for the host
}

// slirpSetup gives the machine's second interface the address that QEMU's user network has for it.
const slirpSetup = "busybox ip addr add 10.0.2.15/24 dev eth1 && busybox ip link set eth1 up && busybox ip route add default via 10.0.2.2 && "

// slirp lets the machine have an interface on QEMU's user network besides its own.
func (b *suite) slirp(cfg *arcbox.Config) (*route, error) {
	free := httptest.NewServer(nil)
	at := free.Listener.Addr().String()
	free.Close()
	return &route{url: "http://" + at + "/"}, b.besides(cfg,
		"-netdev user,id=user,hostfwd=tcp:"+at+"-10.0.2.15:80 -device virtio-net-pci,netdev=user,romfile=")
}

// besides gives machines devices that the driver does not, by a script in place of QEMU.
func (b *suite) besides(cfg *arcbox.Config, args string) error {
	qemu, err := exec.LookPath("qemu-system-" + map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[runtime.GOARCH])
	if err != nil {
		return err
	}
	script := fmt.Sprintf("#!/bin/sh\ncase \"$1\" in --version) exec %[1]s --version;; esac\nexec %[1]s \"$@\" %[2]s\n", qemu, args)
	cfg.VM.QEMU, cfg.VM.Template = filepath.Join(b.dir, "qemu-besides"), arcbox.TemplateOff
	return os.WriteFile(cfg.VM.QEMU, []byte(script), 0o755)
}

// compare measures all ways in turn, and tells how many times as fast as the last one the first is.
func (n *networkBench) compare(paths []*route) error {
	for _, m := range []struct {
		name, unit string
		do         func(*route) (float64, error)
	}{
		{"tcp_egress_mb_s", "MB/s", func(p *route) (float64, error) {
			return throughput(n.exec(p.web, "wget", "-q", "-O", "/dev/null", "--post-file=/dev/shm/big", p.host))
		}},
		{"tcp_ingress_mb_s", "MB/s", func(p *route) (float64, error) {
			return throughput(n.exec(p.web, "wget", "-q", "-O", "/dev/null", p.host))
		}},
		{"tcp_publish_mb_s", "MB/s", func(p *route) (float64, error) { return throughput(n.fetch(p.url + "big")) }},
		{"http_rps", "1/s", n.requests},
		{"http_request_ms", "ms", func(p *route) (float64, error) {
			d, err := n.fetch(p.url)
			return ms(d), err
		}},
	} {
		values := make([][]float64, len(paths))
		for range max(3, n.rounds) {
			for i, p := range paths {
				v, err := m.do(p)
				if err != nil {
					return fmt.Errorf("%s%s: %w", p.prefix, m.name, err)
				}
				values[i] = append(values[i], v)
			}
		}
		for i, p := range paths {
			report(p.prefix+m.name, m.unit, values[i])
		}
		if len(paths) > 1 {
			ours, theirs := values[0], values[len(paths)-1]
			report(m.name+"_ratio", "times", []float64{ours[len(ours)/2] / theirs[len(theirs)/2]})
		}
	}
	return nil
}

func throughput(d time.Duration, err error) (float64, error) {
	return float64(bulk) / 1e6 / d.Seconds(), err
}

// alone measures what QEMU's user network has not.
func (n *networkBench) alone(p *route, client string) error {
	var between, dial []float64
	for range max(3, n.rounds) {
		n.took <- 0
		began := time.Now()
		if _, err := n.exec(client, "wget", "-q", "-O", "/dev/null", "http://web/big"); err != nil {
			return fmt.Errorf("tcp_between_containers_mb_s: %w", err)
		}
		between = append(between, float64(bulk)/1e6/time.Since(began).Seconds())
	}
	report("tcp_between_containers_mb_s", "MB/s", between)
	for range 20 * n.rounds {
		began := time.Now()
		c, err := n.rt.Dial(n.ctx, p.web, "tcp", ":80")
		if err != nil {
			return err
		}
		dial = append(dial, ms(time.Since(began)))
		c.Close()
	}
	report("dial_ms", "ms", dial)
	return nil
}

type networkBench struct {
	*suite
	rt   *arcbox.Runtime
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

// web starts a container that serves a short file and one of bulk bytes, after a script.
func (n *networkBench) web(script string, spec arcbox.ContainerSpec) (arcbox.ContainerInfo, error) {
	spec.ShmSize = 2 * bulk
	spec.Args = busybox("sh", "-c", script+fmt.Sprintf("cd /dev/shm && busybox echo hello >index.html && "+
		"busybox dd if=/dev/zero bs=1048576 count=%d 2>/dev/null | busybox tr '\\0' a >big && exec busybox httpd -f -h /dev/shm -p 80", bulk>>20))
	i, err := n.container(spec)
	if err == nil {
		err = n.rt.WaitFor(n.ctx, i.ID, arcbox.ForListeningPort(80))
	}
	return i, err
}

// container starts a container, which ends with the machine.
func (n *networkBench) container(spec arcbox.ContainerSpec) (i arcbox.ContainerInfo, err error) {
	spec.Image = imageName
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

// fetch gets a file by a connection of its own.
func (n *networkBench) fetch(url string) (time.Duration, error) {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	began := time.Now()
	resp, err := client.Get(url)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, resp.Body, make([]byte, 256<<10))
	return time.Since(began), err
}

// requests returns how many small requests are answered in a second.
func (n *networkBench) requests(p *route) (float64, error) {
	const clients, span = 8, time.Second
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	var done atomic.Int64
	var wg sync.WaitGroup
	began := time.Now()
	for range clients {
		wg.Go(func() {
			for time.Since(began) < span {
				resp, err := client.Get(p.url)
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
	if done.Load() == 0 {
		return 0, errors.New("no request was answered")
	}
	return float64(done.Load()) / time.Since(began).Seconds(), nil
}
