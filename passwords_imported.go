// room:import

package main

import (
	"crypto/pbkdf2"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/bcrypt"
	"golang.org/x/crypto/scrypt"
)

// Hashes that another system made: sign-in accepts them and replaces them by today's. Each kind has a ceiling, so that
// no imported row can stall sign-in.
const (
	maxHashBytes        = 512
	maxBcryptCost       = 14        // about a second
	maxPBKDF2Iterations = 2_000_000 // about a second
	maxScryptBytes      = 256 << 20 // 128 × N × r
)

// storedHash is a hash that was parsed and found affordable.
type storedHash struct {
	matches func(password string) bool
	memory  uint32       // KiB that it takes, for the kinds that take much
	cost    argon2Params // of Argon2id; zero for the others
}

var errHashKind = errors.New("is of an unknown kind: Argon2, bcrypt, scrypt (PHC) or Django pbkdf2_sha256")

// parseHash recognises a stored hash by its beginning.
func parseHash(hash string) (storedHash, error) {
	if len(hash) > maxHashBytes || strings.ContainsFunc(hash, func(c rune) bool { return c < '!' || c > '~' }) {
		return storedHash{}, errHashKind
	}
	kind, _, _ := strings.Cut(strings.TrimPrefix(hash, "$"), "$")
	switch kind {
	case "argon2id", "argon2i":
		return parseArgon2(hash)
	case "2a", "2b", "2y":
		return parseBcrypt(hash)
	case "scrypt":
		return parseScrypt(hash)
	case "pbkdf2_sha256":
		return parseDjango(hash)
	}
	return storedHash{}, errHashKind
}

// parseArgon2 reads $argon2id$v=19$m=19456,t=2,p=1$salt$hash, and argon2i likewise.
func parseArgon2(phc string) (storedHash, error) {
	f := strings.Split(phc, "$")
	if len(f) != 6 || f[2] != fmt.Sprintf("v=%d", argon2.Version) {
		return storedHash{}, errors.New("is not a whole Argon2 PHC string of version 19")
	}
	var a argon2Params
	if n, err := fmt.Sscanf(f[3], "m=%d,t=%d,p=%d", &a.memory, &a.time, &a.threads); n != 3 || err != nil ||
		fmt.Sprintf("m=%d,t=%d,p=%d", a.memory, a.time, a.threads) != f[3] {
		return storedHash{}, errors.New("has Argon2 parameters that cannot be read")
	}
	if a.memory > maxParams.memory || a.time > maxParams.time || a.threads > maxParams.threads || a.time < 1 || a.threads < 1 {
		return storedHash{}, errors.New("has Argon2 parameters out of bounds")
	}
	salt, want, err := saltAndHash(f[4], f[5])
	if err != nil {
		return storedHash{}, err
	}
	derive := argon2.IDKey
	if f[1] == "argon2i" {
		derive = argon2.Key
	}
	stored := storedHash{memory: a.memory, matches: func(password string) bool {
		return equal(derive([]byte(password), salt, a.time, a.memory, a.threads, uint32(len(want))), want) // #nosec G115 -- below maxHashBytes
	}}
	if f[1] == "argon2id" {
		stored.cost = a
	}
	return stored, nil
}

var bcryptPattern = regexp.MustCompile(`^\$2[aby]\$[0-9]{2}\$[./A-Za-z0-9]{53}$`)

func parseBcrypt(hash string) (storedHash, error) {
	cost, err := bcrypt.Cost([]byte(hash))
	if err != nil || !bcryptPattern.MatchString(hash) {
		return storedHash{}, errors.New("is not a whole bcrypt hash")
	}
	if cost > maxBcryptCost {
		return storedHash{}, fmt.Errorf("has a bcrypt cost above %d", maxBcryptCost)
	}
	return storedHash{matches: func(password string) bool {
		// bcrypt reads 72 bytes, here as in the system that made the hash; the one that replaces it reads all.
		b := []byte(password)
		return bcrypt.CompareHashAndPassword([]byte(hash), b[:min(len(b), 72)]) == nil
	}}, nil
}

// parseScrypt reads $scrypt$ln=16,r=8,p=1$salt$hash.
func parseScrypt(phc string) (storedHash, error) {
	f := strings.Split(phc, "$")
	var ln, r, p int
	if len(f) != 5 {
		return storedHash{}, errors.New("is not a whole scrypt PHC string")
	}
	if n, err := fmt.Sscanf(f[2], "ln=%d,r=%d,p=%d", &ln, &r, &p); n != 3 || err != nil ||
		fmt.Sprintf("ln=%d,r=%d,p=%d", ln, r, p) != f[2] {
		return storedHash{}, errors.New("has scrypt parameters that cannot be read")
	}
	if ln < 1 || ln > 20 || r < 1 || r > 32 || p < 1 || p > 4 || 128*r<<ln > maxScryptBytes {
		return storedHash{}, errors.New("has scrypt parameters out of bounds")
	}
	salt, want, err := saltAndHash(f[3], f[4])
	if err != nil {
		return storedHash{}, err
	}
	return storedHash{memory: uint32(128 * r << ln >> 10), matches: func(password string) bool { // #nosec G115 -- at most maxScryptBytes
		got, err := scrypt.Key([]byte(password), salt, 1<<ln, r, p, len(want))
		return err == nil && equal(got, want)
	}}, nil
}

// parseDjango reads pbkdf2_sha256$iterations$salt$hash, where the salt is text.
func parseDjango(hash string) (storedHash, error) {
	f := strings.Split(hash, "$")
	if len(f) != 4 || f[2] == "" {
		return storedHash{}, errors.New("is not a whole pbkdf2_sha256 hash")
	}
	iterations, err := strconv.Atoi(f[1])
	if err != nil || iterations < 1 || iterations > maxPBKDF2Iterations {
		return storedHash{}, fmt.Errorf("has PBKDF2 iterations out of 1 to %d", maxPBKDF2Iterations)
	}
	want, err := base64.StdEncoding.DecodeString(f[3])
	if err != nil || len(want) != sha256.Size {
		return storedHash{}, errors.New("is not a whole pbkdf2_sha256 hash")
	}
	return storedHash{matches: func(password string) bool {
		got, err := pbkdf2.Key(sha256.New, password, []byte(f[2]), iterations, len(want))
		return err == nil && equal(got, want)
	}}, nil
}

func saltAndHash(encodedSalt, encodedHash string) (salt, hash []byte, err error) {
	salt, saltErr := base64.RawStdEncoding.DecodeString(encodedSalt)
	hash, hashErr := base64.RawStdEncoding.DecodeString(encodedHash)
	if saltErr != nil || hashErr != nil || len(salt) < 8 || len(hash) < 16 || len(hash) > 64 {
		return nil, nil, errors.New("has a salt or a hash that cannot be read")
	}
	return salt, hash, nil
}

func equal(a, b []byte) bool { return subtle.ConstantTimeCompare(a, b) == 1 }
