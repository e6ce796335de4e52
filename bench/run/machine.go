package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// machine is the line that says where the figures come from.
func machine() string {
	model := "unknown CPU"
	f, err := os.Open("/proc/cpuinfo")
	if err == nil {
		for s := bufio.NewScanner(f); s.Scan(); {
			if k, v, ok := strings.Cut(s.Text(), ":"); ok && strings.TrimSpace(k) == "model name" {
				model = strings.TrimSpace(v)
				break
			}
		}
		_ = f.Close()
	}
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return fmt.Sprintf("%d × %s, Linux %s, %s, %s", runtime.NumCPU(), model, strings.TrimSpace(string(kernel)), runtime.Version(), firstLine("openssl", "version"))
}

func firstLine(name string, args ...string) string {
	out, err := exec.Command(name, args...).Output() // #nosec G204 -- constant commands
	if err != nil {
		return "no " + name
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return line
}

func load() string {
	b, _ := os.ReadFile("/proc/loadavg")
	return strings.Join(strings.Fields(string(b))[:3], " ")
}

const tick = 10 * time.Millisecond // USER_HZ is 100 on every Linux that Go runs on

// cpu is the user and system time of a process and of its children that it has waited for.
func cpu(pid int) time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	var sum int64
	for _, i := range []int{11, 12, 13, 14} {
		n, _ := strconv.ParseInt(f[i], 10, 64)
		sum += n
	}
	return time.Duration(sum) * tick
}

// cpuTree is cpu of a process and of the children that live.
func cpuTree(pid int) time.Duration {
	sum := cpu(pid)
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, l := range lists {
		b, _ := os.ReadFile(l) // #nosec G304 -- of /proc
		for _, s := range strings.Fields(string(b)) {
			if c, err := strconv.Atoi(s); err == nil {
				sum += cpuTree(c)
			}
		}
	}
	return sum
}

func mega(bytes int64) string { return fmt.Sprintf("%d MB", bytes>>20) }

// peak is the largest resident set that a process has had, in bytes.
func peak(pid int) int64 {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.SplitSeq(string(b), "\n") {
		if v, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, _ := strconv.ParseInt(strings.Fields(v)[0], 10, 64)
			return n << 10
		}
	}
	return 0
}
