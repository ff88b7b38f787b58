package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

// R23: no statement is put together from anything but constants; R89: every column is named.
func TestStatementsAreConstant(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	// Which argument is the statement.
	position := map[string]int{"Query": 1, "QueryRow": 1, "Exec": 1, "exec": 1, "execOne": 1, "one": 2, "many": 2, "oneBy": 3, "manyBy": 3}
	found := 0
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") || name == "db.go" { // db.go hands statements on
			continue
		}
		fset := token.NewFileSet()
		file, err := parser.ParseFile(fset, name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			fun := call.Fun
			if index, ok := fun.(*ast.IndexExpr); ok { // one[user](…)
				fun = index.X
			}
			called := ""
			switch f := fun.(type) {
			case *ast.SelectorExpr:
				called = f.Sel.Name
			case *ast.Ident:
				called = f.Name
			}
			i, ok := position[called]
			if !ok || len(call.Args) <= i {
				return true
			}
			found++
			if !constantText(call.Args[i]) {
				t.Errorf("%s: the statement is not a constant", fset.Position(call.Pos()))
			}
			return true
		})
		content, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(strings.ToLower(string(content)), "select *") || strings.Contains(strings.ToLower(string(content)), "returning *") {
			t.Errorf("%s: a statement asks for all columns", name)
		}
	}
	if found < 60 {
		t.Errorf("only %d statements were looked at", found)
	}
}

func constantText(e ast.Expr) bool {
	switch e := e.(type) {
	case *ast.BasicLit:
		return e.Kind == token.STRING
	case *ast.BinaryExpr:
		return e.Op == token.ADD && constantText(e.X) && constantText(e.Y)
	case *ast.Ident:
		return e.Name == "userMemberships"
	case *ast.SelectorExpr: // a row of the table of statements in prune.go
		x, ok := e.X.(*ast.Ident)
		return ok && x.Name == "q" && e.Sel.Name == "sql"
	}
	return false
}

// Every unique and foreign-key constraint is answered by name, or listed here with the reason why input cannot break it.
func TestEveryConstraintIsAnswered(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	unbreakable := map[string]string{
		"_pkey":                                 "ids and hashes are made here, from 80 random bits or more",
		"_fkey":                                 "404: what was pointed to is gone",
		"mail_tokens_user_id_purpose_key":       "on conflict do update",
		"invitations_organization_id_email_key": "on conflict do update",
		"invitations_token_hash_key":            "256 random bits",
	}
	rows, err := s.pool.Query(t.Context(), `select conname from pg_constraint where connamespace = 'public'::regnamespace and contype in ('u', 'f', 'p')`)
	if err != nil {
		t.Fatal(err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		answered := constraintErrors[name] != nil
		for suffix := range unbreakable {
			answered = answered || strings.HasSuffix(name, suffix)
		}
		if !answered {
			t.Errorf("%s has no answer in errors.go", name)
		}
	}
	for name := range constraintErrors {
		if !slices.Contains(names, name) {
			t.Errorf("errors.go answers %s, which is no constraint", name)
		}
	}
}
