package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
)

// BenchmarkEnumeration compares how long known and unknown addresses take, as a client sees it over HTTP: 200 samples
// of each, interleaved, every one with an address and a network of its own, so that no limit comes into play (R35,
// R37). known/unknown is the ratio of the medians; it should be within 5 % of 1:
//
//	go test -run '^$' -bench Enumeration
func BenchmarkEnumeration(b *testing.B) {
	const samples = 200
	for _, bc := range []struct {
		name, path  string
		contentType string
		body        func(email string) []byte
		status      int
	}{
		{"register", "/v1/auth/register", "application/json", func(email string) []byte {
			return mustJSON(map[string]string{"email": email, "password": testPassword, "name": "Ada"})
		}, 202},
		{"forgot-password", "/v1/auth/forgot-password", "application/json", func(email string) []byte {
			return mustJSON(map[string]string{"email": email})
		}, 202},
		{"sign-in", "/v1/auth/token", "application/x-www-form-urlencoded", func(email string) []byte {
			return []byte(url.Values{"grant_type": {"password"}, "username": {email}, "password": {"not the password"}}.Encode())
		}, 400},
	} {
		b.Run(bc.name, func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				s := newTestServer(b, func(c *config) {
					c.Throttle, c.TrustedProxies = "on", []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
				})
				hash, err := s.passwords.hash(b.Context(), netip.Addr{}, testPassword)
				if err != nil {
					b.Fatal(err)
				}
				s.exec(`
					insert into users (id, email, name, password_hash, email_verified)
					select gen_random_uuid(), 'known' || n || '@example.com', 'Ada', $1, true
					from generate_series(-20, $2::int) n`, hash, samples)
				b.StartTimer()
				times := map[string][]time.Duration{}
				for i := -20; i < samples; i++ { // the first twenty warm up
					order := []string{"known", "unknown"}
					if i%2 != 0 { // what a request leaves behind falls on either kind alike
						slices.Reverse(order)
					}
					for k, kind := range order {
						r, err := http.NewRequestWithContext(b.Context(), "POST", s.url+bc.path, bytes.NewReader(bc.body(fmt.Sprint(kind, i, "@example.com"))))
						if err != nil {
							b.Fatal(err)
						}
						r.Header.Set("Content-Type", bc.contentType)
						r.Header.Set("X-Forwarded-For", fmt.Sprintf("198.%d.%d.1", 18+k, i+20))
						start := time.Now()
						response, err := testClient.Do(r)
						if err != nil {
							b.Fatal(err)
						}
						_, err = io.Copy(io.Discard, response.Body)
						took := time.Since(start)
						response.Body.Close()
						if err != nil || response.StatusCode != bc.status {
							b.Fatal(kind, response.StatusCode, err)
						}
						if i >= 0 {
							times[kind] = append(times[kind], took)
						}
					}
				}
				known, unknown := middle(times["known"]), middle(times["unknown"])
				b.ReportMetric(float64(known.Microseconds())/1000, "known-ms")
				b.ReportMetric(float64(unknown.Microseconds())/1000, "unknown-ms")
				b.ReportMetric(float64(known)/float64(unknown), "known/unknown")
			}
		})
	}
}

// middle is the median.
func middle(d []time.Duration) time.Duration {
	slices.Sort(d)
	return (d[(len(d)-1)/2] + d[len(d)/2]) / 2
}

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}
