package main

import (
	"context"
	"net/http"
	"reflect"
	"runtime"
	"strings"
	"time"
)

// requestTimeout bounds everything a request waits for (R01).
const requestTimeout = 10 * time.Second

// endpoint is a typed handler with its types erased: what the route table holds.
type endpoint struct {
	operation string // the handler's name, which is also the operationId
	in, out   reflect.Type
	recent    bool // only for sessions younger than recentSignIn
	// call decodes the input, runs the handler and returns its value. ctx is the handler's.
	call func(ctx context.Context, s *server, r *http.Request, c caller) (any, error)
}

// none is the output of a call that has nothing to say: 204.
type none struct{}

// file is an output that is not JSON.
type file struct {
	contentType string
	policy      string // Content-Security-Policy; empty for the one of every response
	content     []byte
}

// handle turns a handler into an endpoint. The compiler ties the documented types to the code.
func handle[In, Out any](h func(context.Context, caller, In) (Out, error)) endpoint {
	in := reflect.TypeFor[In]()
	fields := inputFields(in)
	operation := nameOf(h)
	return endpoint{operation: operation, in: in, out: reflect.TypeFor[Out](),
		call: func(ctx context.Context, s *server, r *http.Request, c caller) (any, error) {
			var input In
			if err := s.decode(r, c, fields, reflect.ValueOf(&input).Elem()); err != nil {
				return nil, err
			}
			if err := s.limitCall(ctx, c, r, operation); err != nil { // room:throttling
				return nil, err
			}
			return h(ctx, c, input)
		}}
}

// recently is an endpoint for those alone who have just signed in.
func recently(e endpoint) endpoint {
	e.recent = true
	return e
}

// nameOf returns createUser for the method value s.createUser.
func nameOf(method any) string {
	name := runtime.FuncForPC(reflect.ValueOf(method).Pointer()).Name() // main.(*server).createUser-fm
	return strings.TrimSuffix(name[strings.LastIndexByte(name, '.')+1:], "-fm")
}

// cursorScope is what a cursor belongs to: the list, its filters and the caller.
func cursorScope(r *http.Request, c caller) string {
	query := r.URL.Query()
	query.Del("after")
	query.Del("limit")
	return c.user.ID + " " + r.URL.Path + "?" + query.Encode()
}

// serve runs one row of the route table: who is calling, may they, what do they want, do it, answer.
func (s *server) serve(rt route) http.HandlerFunc {
	return func(rw http.ResponseWriter, r *http.Request) {
		w := rw.(*muxWriter).response
		// A client that hangs up does not cancel its queries: a cancelled query costs PostgreSQL a connection, a
		// finished one nothing (R87).
		ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), requestTimeout)
		defer cancel()
		c, err := s.authenticate(ctx, r, rt.access)
		if err != nil {
			s.writeError(w, r, err)
			return
		}
		w.userID = c.user.ID
		if rt.recent && !c.recent() {
			s.writeError(w, r, errRecentSignIn)
			return
		}
		out, err := rt.call(ctx, s, r, c)
		if err != nil {
			s.writeError(w, r, err)
			return
		}
		s.answer(w, r, c, rt.status, out)
	}
}

// answer writes a success, with the headers that the value itself knows.
func (s *server) answer(w *response, r *http.Request, c caller, status int, out any) {
	header := w.Header()
	if v, ok := out.(interface{ cacheControl() string }); ok {
		header.Set("Cache-Control", v.cacheControl())
	}
	if v, ok := out.(interface{ etag() string }); ok {
		header.Set("ETag", v.etag())
		if (r.Method == "GET" || r.Method == "HEAD") && etagListed(strings.Join(r.Header.Values("If-None-Match"), ","), v.etag()) {
			w.WriteHeader(http.StatusNotModified)
			return
		}
	}
	if p, ok := out.(pager); ok {
		var next string
		out, next = p.sign(func(id string) string { return s.keys.signCursor(cursorScope(r, c), id) })
		if next != "" {
			query := r.URL.Query()
			query.Set("after", next)
			header.Set("Link", "<"+s.cfg.PublicURL+r.URL.EscapedPath()+"?"+query.Encode()+`>; rel="next"`)
		}
	}
	switch out := out.(type) {
	case none:
		w.WriteHeader(status)
	case file:
		if out.policy != "" {
			header.Set("Content-Security-Policy", out.policy)
		}
		// Whole: http.ServeContent answers a bad Range or If-Match in a way of its own (R05).
		write(w, status, out.contentType, out.content)
	default:
		s.writeJSON(w, r, status, "application/json", out)
	}
}

// etagListed is RFC 9110 section 13.1.2.
func etagListed(header, etag string) bool {
	for _, tag := range strings.Split(header, ",") {
		if tag = strings.TrimSpace(tag); tag == "*" || plainTag(tag) == etag {
			return true
		}
	}
	return false
}
