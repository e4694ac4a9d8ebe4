// Bench measures arcbox on this machine and prints lines of "BENCH name value unit". Every value is a median. It asserts
// nothing: machines differ, and are noisy. Compare values of one run with each other.
//
//	floor_boot_ms       QEMU alone with the same kernel, kernel command line, processor and accelerator: exec to /init's first line
//	cold_boot_ms        a machine without a container: exec of QEMU to its agent's answers, with templates off
//	clone_boot_ms       the same with a template that is there
//	container_start_ms  RunContainer of true in a running machine, from the call to the exit
//	first_run_ms        a new process, image in the store: from its start to the container's first output, VM included (a clone)
//	snapshot_ms         SnapshotMachine of a machine with a container that runs
//	fork_ms             a machine made from a snapshot and started: CreateMachine to its agent's answer, the container running
//	parallel_clones_20_ms   20 machines of a template started at once, until the last one's agent has answered
//	clone_private_mb    memory of one of those that it shares with nobody
//	idle_cpu_percent    of one processor, of a machine without containers, in 5 s
//	idle_rss_mb         memory of its process, what it shares included
//	exec_ms             Exec of true in a running container, from the call to the exit
//	attach_throughput_mb_s  64 MiB of a process's output to an attached writer, its container's start included
//	parallel_start_16_ms    16 RunContainer of true at once, until the last exit
//	list_1000_ms        New and ListContainers where 1000 containers are recorded
//	layer_convert_mb_s  an uncompressed layer into the store, digests and ext4 image included
//	pull_ms             an image of the size of Debian (180 MB, 5 layers) from a local registry to ready to run, in a new process
//	pull_peak_mb        the most memory of that process
//	skopeo_umoci_ms     where they are installed: skopeo copy and umoci unpack of the same image, in turn with it
//	docker_pull_ms      with -docker: docker pull of the same image
//	share_stat_us       stat of a file of the host again, from a container
//	share_stat_cold_us  stat of files that were not looked at before
//	share_miss_us       stat of a name that is not there: one question to the host each
//	share_read_mb_s, share_write_mb_s  a file of 64 MiB on the host, read and written by a container
//	share_walk_10000_ms a walk of 10,000 files of the host with a stat of each
//	share_git_status_10000_ms, share_git_status_10000_again_ms  where git is installed: git status of a tree of 10,000 files
//	qemu_virtiofs_...   where QEMU's virtiofsd is installed: the same by virtio-fs in the same guest, in turn with ours
//	tcp_egress_mb_s     32 MiB that a container posts to a service of the host
//	tcp_ingress_mb_s    the same fetched by a container from there
//	tcp_publish_mb_s    the same fetched from a container through a published port
//	tcp_between_containers_mb_s  the same fetched by one container from another in the machine, the exec of wget included
//	dial_ms             Dial to a port of a container
//	http_rps            requests through a published port to busybox httpd, which forks for each, a connection each, 8 at a time
//	http_request_ms     one of them alone
//	qemu_user_*         the same, in turn with it, through QEMU's own user network by a second interface of the same machine
//	*_ratio             what arcbox has over that: more is better, but for http_request_ms
//	docker_run_ms       with -docker: docker run --rm of the same image and command as first_run_ms, by a running dockerd, network off, to its end
//	docker_run_output_ms  the same to its first output
//	first_run_beside_docker_ms, first_run_docker_ratio  first_run_ms measured in turn with these, and what it is of docker_run_ms
//	docker_run_true_ms, arcbox_run_true_ms  with -docker: true in a new container, by arcbox in a running machine, in turn
//	docker_exec_ms, arcbox_exec_ms  with -docker: true in a running container, in turn
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"time"

	"github.com/arcboxlabs/arcbox-go"
)

func main() {
	rounds := flag.Int("n", 5, "boots to measure; containers are measured 5 times as often")
	docker := flag.Bool("docker", false, "compare with docker: starts a dockerd, as root")
	first := flag.String("first-run", "", "run one container from this data directory and end (used by the benchmark itself)")
	pull := flag.String("pull", "", "pull this image and end (used by the benchmark itself)")
	into := flag.String("into", "", "data directory for -pull")
	only := flag.String("only", "", "measure only this: boots, containers, execs, first-runs, forks, clones, layers, pulls, shares, networks, docker or lists")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	var err error
	switch {
	case *first != "":
		err = firstRun(ctx, *first)
	case *pull != "":
		err = pullOnce(ctx, *pull, *into)
	default:
		err = bench(ctx, *rounds, *docker || *only == "docker", *only)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func bench(ctx context.Context, rounds int, docker bool, only string) error {
	dir, err := os.MkdirTemp("", "arcbox-bench-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b := &suite{ctx: ctx, dir: dir, rounds: rounds}
	steps := []struct {
		name string
		do   func() error
	}{
		{"boots", b.boots}, {"containers", b.containers}, {"execs", b.execs}, {"first-runs", b.firstRuns},
		{"forks", b.forks}, {"clones", b.clonesAtOnce}, {"layers", b.layers},
		{"pulls", b.pulls}, {"shares", b.shares}, {"networks", b.networks}, {"docker", b.docker}, {"lists", b.lists}, // the last leaves many records
	}
	if only != "pulls" {
		if err := b.prepare(); err != nil {
			return err
		}
	}
	for _, step := range steps {
		if (only != "" && step.name != only) || (step.name == "docker" && !docker) {
			continue
		}
		if err := step.do(); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return nil
}

// suite is one run of all measurements.
type suite struct {
	ctx     context.Context
	dir     string
	rounds  int
	archive string // of the image
}

func (b *suite) config() arcbox.Config {
	return arcbox.Config{DataDir: b.dir, VM: arcbox.VMConfig{CPUs: 2, Memory: 512 << 20}}
}

// report prints the median.
func report(name, unit string, values []float64) {
	slices.Sort(values)
	median, digits := values[len(values)/2], 1
	if median < 10 {
		digits = 2
	}
	fmt.Printf("BENCH %s %.*f %s\n", name, digits, median, unit)
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
