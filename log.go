package main

import (
	"bufio"
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

// logFlush is how long a line may wait: a process that is killed loses no more than that of its log.
const logFlush = 100 * time.Millisecond

// logBuffer saves the access log a system call a request. flush must be called before the program ends.
type logBuffer struct {
	mu      sync.Mutex
	buffer  *bufio.Writer
	pending bool // a flush is on its way
}

func newLogBuffer(w io.Writer) *logBuffer { return &logBuffer{buffer: bufio.NewWriterSize(w, 64<<10)} }

func (b *logBuffer) Write(line []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.pending {
		b.pending = true
		time.AfterFunc(logFlush, b.flush)
	}
	return b.buffer.Write(line)
}

func (b *logBuffer) flush() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.pending = false
	_ = b.buffer.Flush() // a log that cannot be written has nowhere to say so
}
