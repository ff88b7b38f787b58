package main

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
)

// fullDisk takes some bytes of each write, and then no more while it is full.
type fullDisk struct {
	bytes.Buffer
	full  bool
	takes int
}

func (d *fullDisk) Write(p []byte) (int, error) {
	if !d.full {
		return d.Buffer.Write(p)
	}
	n, _ := d.Buffer.Write(p[:min(d.takes, len(p))])
	return n, errors.New("no space left on device")
}

// R110: a log that could not be written goes on where it stopped, with whole lines, and says what is missing.
func TestLogSurvivesFailedWrites(t *testing.T) {
	t.Parallel()
	for _, format := range []string{"json", "text"} {
		for _, takes := range []int{0, 10} {
			disk := &fullDisk{full: true, takes: takes}
			b := newLogBuffer(config{LogFormat: format, LogLevel: slog.LevelWarn}, disk)
			log := newLogger(config{LogFormat: format}, b)
			log.Info("while it is full")
			b.flush()
			disk.full = false
			log.Info("afterwards")
			b.flush()
			lines := strings.Split(disk.String(), "\n")
			if len(lines) != 3 || !strings.Contains(lines[0], "while it is full") || !strings.Contains(lines[1], "afterwards") {
				t.Errorf("%s: %q", format, lines)
			}

			// Longer than there is room for.
			disk.Reset()
			disk.full = true
			written := 0
			for ; b.lost < 7; written++ {
				log.Info("much", "text", strings.Repeat("a", 1000))
			}
			if b.lines.Len() > logSize+2000 {
				t.Errorf("%d bytes are kept", b.lines.Len())
			}
			disk.full = false
			b.flush()
			log.Info("afterwards")
			b.flush()
			text := disk.String()
			if n := strings.Count(text, "much"); n != written-7 {
				t.Errorf("%s: %d lines of %d", format, n, written)
			}
			told := strings.Index(text, "lines of this log were lost")
			if told < strings.LastIndex(text, "much") || told > strings.Index(text, "afterwards") || strings.Count(text, "lost") != 1 ||
				!strings.Contains(text, map[string]string{"json": `"lines":7}`, "text": "lines=7\n"}[format]) {
				t.Errorf("%s: %s", format, text[len(text)-400:])
			}
		}
	}
}
