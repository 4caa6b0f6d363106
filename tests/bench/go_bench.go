// go_bench.go - the same tests in Go, on one processor
//
//	yield    two goroutines calling Gosched, a call
//	spawn    start and wait for an empty goroutine, one at a time and
//	         (spawn-batch) 1,000 at a time
//	channel  a 64-bit value through a channel without a buffer, and
//	         (channel-128) with one of 128 slots
//	timer N  N goroutines of 100 sleeps of 1 to 10 ms, CPU time a sleep
//
//	go build go_bench.go && taskset -c 1 ./go_bench channel
//
// SPDX-License-Identifier: MIT
package main

import (
	"fmt"
	"math/rand"
	"os"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"
)

func report(test string, ns float64) {
	fmt.Printf("go %s %.3f ns\n", test, ns)
}

func eachNs(start time.Time, count int) float64 {
	return float64(time.Since(start).Nanoseconds()) / float64(count)
}

func cpuNs() float64 {
	var use syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &use)
	return float64(use.Utime.Nano() + use.Stime.Nano())
}

func measureYield() {
	const count = 5000000
	theirs, stop := 0, false
	go func() {
		for !stop {
			theirs++
			runtime.Gosched()
		}
	}()
	runtime.Gosched()
	theirs = 0
	start := time.Now()
	for i := 0; i < count; i++ {
		runtime.Gosched()
	}
	report("yield", eachNs(start, count+theirs))
	stop = true
}

func measureSpawn() {
	const count, batch = 1000000, 1000
	var ended sync.WaitGroup
	start := time.Now()
	for i := 0; i < count; i++ {
		ended.Add(1)
		go ended.Done()
		ended.Wait()
	}
	report("spawn", eachNs(start, count))
	start = time.Now()
	for i := 0; i < count; i += batch {
		ended.Add(batch)
		for k := 0; k < batch; k++ {
			go ended.Done()
		}
		ended.Wait()
	}
	report("spawn-batch", eachNs(start, count))
}

func measureChannel(test string, slots int) {
	const count = 5000000
	values, sum := make(chan uint64, slots), make(chan uint64)
	start := time.Now()
	go func() {
		for i := uint64(0); i < count; i++ {
			values <- i
		}
		close(values)
	}()
	go func() {
		all := uint64(0)
		for value := range values {
			all += value
		}
		sum <- all
	}()
	<-sum
	report(test, eachNs(start, count))
}

func measureTimer(count int) {
	const naps = 100
	cpu := cpuNs()
	var ended sync.WaitGroup
	ended.Add(count)
	for i := 0; i < count; i++ {
		go func() {
			for k := 0; k < naps; k++ {
				time.Sleep(time.Duration(1000+rand.Intn(9000)) * time.Microsecond)
			}
			ended.Done()
		}()
	}
	ended.Wait()
	report("timer", (cpuNs()-cpu)/float64(count*naps))
}

func main() {
	runtime.GOMAXPROCS(1)
	test, count := "", 10000
	if len(os.Args) > 1 {
		test = os.Args[1]
	}
	if len(os.Args) > 2 {
		count, _ = strconv.Atoi(os.Args[2])
	}
	switch test {
	case "yield":
		measureYield()
	case "spawn":
		measureSpawn()
	case "channel":
		measureChannel("channel", 0)
		measureChannel("channel-128", 128)
	case "timer":
		measureTimer(count)
	default:
		fmt.Fprintln(os.Stderr, "usage: go_bench yield|spawn|channel|timer [N]")
		os.Exit(2)
	}
}
