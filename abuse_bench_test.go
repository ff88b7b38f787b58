package main

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const (
	floodClients = 64
	floodTime    = 30 * time.Second
	floodPace    = 5 * time.Millisecond
)

// BenchmarkSignInFlood is 64 clients that guess passwords for 30 seconds, as fast as they are answered and with nothing
// counted, so that the hashing gate alone protects the process (R32). It reports by how much memory grew (Linux), beside
// what the hashes of a full gate hold, and how long somebody who reads themselves every 5 ms waits, before and meanwhile:
//
//	go test -run '^$' -bench SignInFlood
func BenchmarkSignInFlood(b *testing.B) {
	boundGarbage() // as openServer does
	s := newBenchServer(b, "off")
	m := signInOver(b, s, 0)
	read := repeat(dial(b, s.url), "GET /v1/users/me HTTP/1.1\r\n"+benchHeaders+"Authorization: Bearer "+m.token+"\r\n\r\n")
	form := url.Values{"grant_type": {"password"}, "username": {m.email}, "password": {"not the password"}}.Encode()
	for b.Loop() {
		quiet := pace(b, read, floodTime/6)
		debug.FreeOSMemory()
		before := residentMB("VmRSS:")
		_ = os.WriteFile("/proc/self/clear_refs", []byte("5"), 0) // the peak is the flood's
		var stopped atomic.Bool
		var hashed, shed atomic.Int64
		var clients sync.WaitGroup
		start := time.Now()
		for range floodClients {
			w := dial(b, s.url)
			clients.Go(func() {
				for !stopped.Load() {
					switch status, err := w.status(tokenRequest(form)); {
					case err != nil:
						b.Error(err)
						return
					case status == 400:
						hashed.Add(1)
					case status == 503:
						shed.Add(1)
					default:
						b.Error("a wrong password gets a ", status)
						return
					}
				}
			})
		}
		flooded := pace(b, read, floodTime)
		stopped.Store(true)
		clients.Wait()
		elapsed := time.Since(start).Seconds()
		b.ReportMetric(0, "ns/op") // hides it
		b.ReportMetric(residentMB("VmHWM:")-before, "peak-MB-above-base")
		b.ReportMetric(float64(s.passwords.gate.places)*float64(currentParams.memory)/1024, "gate-MB")
		b.ReportMetric(quiet, "quiet-p99-ms")
		b.ReportMetric(flooded, "flood-p99-ms")
		b.ReportMetric(flooded/quiet, "p99-ratio")
		b.ReportMetric(float64(hashed.Load())/elapsed, "hashes/s")
		b.ReportMetric(float64(shed.Load())/elapsed, "refused/s")
	}
}

// pace does something at a steady pace and returns the 99th percentile in milliseconds, from when it was due.
func pace(b *testing.B, exchange func() error, d time.Duration) float64 {
	due := time.NewTicker(floodPace)
	defer due.Stop()
	var took []time.Duration
	for start := time.Now(); time.Since(start) < d; {
		at := <-due.C
		if err := exchange(); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(at))
	}
	slices.Sort(took)
	return float64(took[len(took)*99/100].Microseconds()) / 1000
}

// status sends a request and returns what it was answered.
func (w *wire) status(request []byte) (int, error) {
	if _, err := w.conn.Write(request); err != nil {
		return 0, err
	}
	response, err := http.ReadResponse(w.r, nil)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	_, err = io.Copy(io.Discard, response.Body)
	return response.StatusCode, err
}

// residentMB reads a line of /proc/self/status; zero where there is none.
func residentMB(name string) float64 {
	status, _ := os.ReadFile("/proc/self/status")
	var kilobytes float64
	_, rest, _ := strings.Cut(string(status), name)
	_, _ = fmt.Sscan(rest, &kilobytes)
	return kilobytes / 1024
}
