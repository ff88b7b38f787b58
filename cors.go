// room:cors

// CORS: which browser apps of other origins may read the answers. A team without it serves its front end from the origin of
// the API, or lets its proxy answer.
//
// What ties it to the house is what `grep -n room:cors *.go` finds: a step of the middleware chain and a variable of the
// configuration. To take it out, delete this file and those lines.

package main

import (
	"errors"
	"net/http"
	"strings"

	"github.com/jub0bs/cors"
)

// cors allows exactly the origins of CORS_ORIGINS, without credentials: tokens travel in a header (R07). What is public
// may be read from anywhere.
func (s *server) cors(next http.Handler) http.Handler {
	listed, err := newCORS(s.cfg.CORSOrigins)
	public, err2 := newCORS([]string{"*"})
	if err = errors.Join(err, err2); err != nil {
		panic(err) // the configuration was checked
	}
	forListed, forAll := listed.Wrap(next), public.Wrap(next)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/openapi.json" || strings.HasPrefix(r.URL.Path, "/.well-known/") {
			forAll.ServeHTTP(w, r)
			return
		}
		forListed.ServeHTTP(w, r)
	})
}

// tracingHeaders are those that browser SDKs add to every call of a page; none changes an answer. The list ends:
// X-Forwarded-For and the like are not for a page to send.
var tracingHeaders = []string{
	"traceparent", "tracestate", "baggage", // W3C Trace Context, W3C Baggage: OpenTelemetry and most others
	"sentry-trace", "newrelic", "elastic-apm-traceparent", "uber-trace-id", // Sentry, New Relic, Elastic, Jaeger
	"b3", "x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid", "x-b3-sampled", "x-b3-flags", // Zipkin
	"x-datadog-trace-id", "x-datadog-parent-id", "x-datadog-origin", "x-datadog-sampling-priority", "x-datadog-tags",
	"x-amzn-trace-id", "x-cloud-trace-context", "request-id", "request-context", // AWS, Google, Azure
	"x-correlation-id", "x-requested-with", "idempotency-key", "cache-control", "pragma", // libraries of calls
}

// newCORS allows nobody when origins is empty.
func newCORS(origins []string) (*cors.Middleware, error) {
	if len(origins) == 0 {
		return new(cors.Middleware), nil
	}
	return cors.NewMiddleware(cors.Config{
		Origins:         origins,
		Methods:         []string{"GET", "POST", "PUT", "PATCH", "DELETE"},
		RequestHeaders:  append([]string{"Authorization", "Content-Type", "If-Match", "If-None-Match", "X-Request-Id"}, tracingHeaders...),
		ResponseHeaders: []string{"ETag", "Link", "Retry-After", "X-Request-Id", "WWW-Authenticate"},
		MaxAgeInSeconds: 600,
	})
}
