package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/joho/godotenv"
	"golang.org/x/text/encoding/unicode"
	"golang.org/x/text/transform"
)

// Text files as editors, spreadsheets and shells of all systems write them.

var errNotText = errors.New("the text is UTF-32, or UTF-16 without a byte order mark: save it as UTF-8, such as with `iconv -f UTF-16LE -t UTF-8`")

// newTextReader returns what in holds as UTF-8 without a byte order mark: of UTF-8, or of UTF-16 with its mark. What
// else begins with zero bytes is an error.
func newTextReader(in io.Reader) (io.Reader, error) {
	begin := bufio.NewReaderSize(in, 1<<16)
	first, err := begin.Peek(4)
	if err != nil && err != io.EOF {
		return nil, err
	}
	utf16 := bytes.HasPrefix(first, []byte{0xFF, 0xFE}) || bytes.HasPrefix(first, []byte{0xFE, 0xFF})
	if zeros := bytes.Count(first, []byte{0}); zeros > 0 && !utf16 || zeros > 1 {
		return nil, errNotText
	}
	return transform.NewReader(begin, unicode.BOMOverride(transform.Nop)), nil
}

// readTextFile returns a small file as text.
func readTextFile(path string) (string, error) {
	file, err := os.Open(path) // #nosec G304 -- the operator names it
	if err != nil {
		return "", err
	}
	defer file.Close()
	text, err := newTextReader(file)
	if err != nil {
		return "", err
	}
	content, err := io.ReadAll(text)
	return string(content), err
}

// readDotenv returns the variables of a .env file. Its errors hold nothing of the file but the number of a line.
func readDotenv(path string) (map[string]string, error) {
	text, err := readTextFile(path)
	if err != nil {
		return nil, err
	}
	return parseDotenv(text)
}

func parseDotenv(text string) (map[string]string, error) {
	text = strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(text)
	variables, err := godotenv.Unmarshal(text)
	if err == nil {
		return variables, nil
	}
	// The library's error quotes the file. The line is the one after the longest beginning that can be read.
	lines := strings.SplitAfter(text, "\n")
	good := len(lines) - 1
	for ; good > 0; good-- {
		if _, err := godotenv.Unmarshal(strings.Join(lines[:good], "")); err == nil {
			break
		}
	}
	return nil, fmt.Errorf("line %d is not NAME=value", good+1)
}

const maxImportLine = 64 << 10

var errLongLine = fmt.Errorf("is longer than %d bytes", maxImportLine)

// readLine returns the next line in the memory of the one before, without its end, which is \n, \r\n or \r. A line that
// is too long is skipped and an error.
func readLine(in *bufio.Reader, line []byte) ([]byte, error) {
	line = line[:0]
	for length := 0; ; {
		c, err := in.ReadByte()
		if err != nil && (err != io.EOF || length == 0) {
			return line, err
		}
		if c == '\r' {
			if next, _ := in.Peek(1); string(next) == "\n" {
				_, _ = in.Discard(1)
			}
		}
		if err == io.EOF || c == '\n' || c == '\r' {
			if length > maxImportLine {
				return line, errLongLine
			}
			return line, nil
		}
		if length++; length <= maxImportLine {
			line = append(line, c)
		}
	}
}
