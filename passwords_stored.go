package main

import (
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/argon2"
)

const maxHashBytes = 512

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
	case "2a", "2b", "2y": // room:import
		return parseBcrypt(hash) // room:import
	case "scrypt": // room:import
		return parseScrypt(hash) // room:import
	case "pbkdf2_sha256": // room:import
		return parseDjango(hash) // room:import
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

func saltAndHash(encodedSalt, encodedHash string) (salt, hash []byte, err error) {
	salt, saltErr := base64.RawStdEncoding.DecodeString(encodedSalt)
	hash, hashErr := base64.RawStdEncoding.DecodeString(encodedHash)
	if saltErr != nil || hashErr != nil || len(salt) < 8 || len(hash) < 16 || len(hash) > 64 {
		return nil, nil, errors.New("has a salt or a hash that cannot be read")
	}
	return salt, hash, nil
}

func equal(a, b []byte) bool { return subtle.ConstantTimeCompare(a, b) == 1 }
