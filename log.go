package main

import (
	"bytes"
	"io"
	"log/slog"
	"sync"
	"time"
)

// newLogger writes one line an event to w. Attributes only: user text never becomes part of a message (R96).
func newLogger(cfg config, w io.Writer) *slog.Logger {
	options := &slog.HandlerOptions{Level: cfg.LogLevel}
	if cfg.LogFormat == "text" {
		return slog.New(slog.NewTextHandler(w, options))
	}
	return slog.New(slog.NewJSONHandler(w, options))
}

const (
	// logFlush is how long a line may wait: a process that is killed loses no more than that of its log.
	logFlush = 100 * time.Millisecond
	// logSize is from how many bytes on lines do not wait for others.
	logSize = 64 << 10
)

// logBuffer saves the access log a system call a request. What cannot be written is kept and tried again, as far as there
// is room for it; the rest is lost, and the log says how many lines that were (R110). flush must be called before the
// program ends.
type logBuffer struct {
	mu      sync.Mutex
	w       io.Writer
	lines   bytes.Buffer
	own     *slog.Logger // writes to lines
	lost    int
	pending bool // a flush is on its way
}

func newLogBuffer(cfg config, w io.Writer) *logBuffer {
	b := &logBuffer{w: w}
	b.own = newLogger(cfg, &b.lines)
	return b
}

func (b *logBuffer) Write(line []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.lines.Len() >= logSize {
		b.write()
	}
	if b.lines.Len() < logSize {
		b.lines.Write(line)
	} else {
		b.lost++
	}
	b.flushLater()
	return len(line), nil
}

func (b *logBuffer) flush() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.pending = false
	b.write()
	if b.lines.Len() > 0 {
		b.flushLater()
	}
}

func (b *logBuffer) flushLater() {
	if !b.pending {
		b.pending = true
		time.AfterFunc(logFlush, b.flush)
	}
}

// write writes the lines. What fails stays for the next time: a log that cannot be written has nowhere to say so.
func (b *logBuffer) write() {
	_, _ = b.lines.WriteTo(b.w)
	if b.lost > 0 && b.lines.Len() < logSize {
		b.own.Error("lines of this log were lost", "lines", b.lost)
		b.lost = 0
		_, _ = b.lines.WriteTo(b.w)
	}
}
