package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A reading is the CPU time that each process had used at one moment.
type reading struct {
	time                   time.Time
	server, vendor, client time.Duration
	others                 map[int]time.Duration
}

func read() reading {
	return reading{
		time:   time.Now(),
		server: processTime(*serverPID),
		vendor: processTime(*vendorPID),
		client: processTime(os.Getpid()),
		others: othersTime(),
	}
}

func processTime(pid int) time.Duration {
	if pid == 0 {
		return 0
	}
	used, err := clock(pid)
	check(err)
	return used
}

// clock is user and system time of all threads of a process, to the nanosecond; /proc/PID/stat knows it to 10 ms.
func clock(pid int) (time.Duration, error) {
	const scheduler = 2 // clock_getcpuclockid(3): the complement of the process, above three bits for the kind of clock
	var used unix.Timespec
	err := unix.ClockGettime(int32(^pid<<3|scheduler), &used)
	return time.Duration(used.Nano()), err
}

// othersTime is that of every other process, by its number: /proc/stat counts in ticks, and short runs fall between.
func othersTime() map[int]time.Duration {
	entries, err := os.ReadDir("/proc")
	check(err)
	others := map[int]time.Duration{}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err == nil && pid != *serverPID && pid != *vendorPID && pid != os.Getpid() {
			others[pid], _ = clock(pid)
		}
	}
	return others
}

// resident is the memory of a process, in bytes.
func resident(pid int) int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	check(err)
	pages, err := strconv.Atoi(strings.Fields(string(text))[1])
	check(err)
	return pages * os.Getpagesize()
}
