// room:import

package main

import (
	"crypto/pbkdf2"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/crypto/bcrypt"
	"golang.org/x/crypto/scrypt"
)

// Hashes that another system made: sign-in accepts them and replaces them by today's. Each kind has a ceiling, so that
// no imported row can stall sign-in.
const (
	maxBcryptCost       = 14        // about a second
	maxPBKDF2Iterations = 2_000_000 // about a second
	maxScryptBytes      = 256 << 20 // 128 × N × r
)

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
