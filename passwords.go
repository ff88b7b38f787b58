package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"runtime"
	"strings"
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
	minLength int
	dummy     string // verified for unknown addresses, so that they take the same time (R35)
}

func newPasswords(minLength int) *passwords {
	p := &passwords{gate: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)-1)), minLength: minLength}
	p.dummy = encodePHC(currentParams, make([]byte, 16), make([]byte, 32))
	return p
}

// hash returns the PHC string of password, or errOverloaded when the gate stays full for gateWait.
func (p *passwords) hash(ctx context.Context, password string) (string, error) {
	leave, err := p.enter(ctx)
	if err != nil {
		return "", err
	}
	defer leave()
	salt := make([]byte, 16)
	rand.Read(salt)
	return encodePHC(currentParams, salt, currentParams.key(password, salt, 32)), nil
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
	defer leave()
	return stored.matches(password) && readable, !stored.current, nil
}

// enter waits for a place in the gate.
func (p *passwords) enter(ctx context.Context) (leave func(), err error) {
	timer := time.NewTimer(gateWait)
	defer timer.Stop()
	select {
	case p.gate <- struct{}{}:
		return func() { <-p.gate }, nil
	case <-timer.C:
		return nil, errOverloaded
	case <-ctx.Done():
		return nil, errOverloaded
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

// problem says why password may not be chosen, in a code and a sentence; both are empty when it may.
func (p *passwords) problem(password string) (code, detail string) {
	switch n := utf8.RuneCountInString(password); {
	case n < p.minLength:
		return "password_too_short", fmt.Sprintf("must have at least %d characters", p.minLength)
	case n > maxPasswordPoints || len(password) > maxPasswordBytes:
		return "password_too_long", fmt.Sprintf("must have at most %d characters", maxPasswordPoints)
	}
	if strings.ContainsRune(password, 0) || !utf8.ValidString(password) {
		return "forbidden_character", "must be text that a form can carry"
	}
	return "", ""
}

// refusePassword applies the rule that needs the account: the address is no password (R30).
func refusePassword(pointer, password, email string) error {
	local, _, _ := strings.Cut(email, "@")
	lower := strings.ToLower(password)
	if lower == email || (len(local) >= 4 && strings.Trim(strings.ReplaceAll(lower, local, ""), "0123456789!.-_@") == "") {
		return invalid(fieldError{pointer, "password_too_common", "must not be made of your address"})
	}
	return nil
}
