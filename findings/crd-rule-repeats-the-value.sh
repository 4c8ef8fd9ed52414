#!/usr/bin/env bash
# A definition's rule at a string repeats the string when it refuses; the same rule at the object around it does not.
#
# Version: Kubernetes 1.35.4 (k8s.io/apiextensions-apiserver v0.35.4).
# Expected: `message` is what the user gets to read. Where a rule of x-kubernetes-validations stands (at the string, or
#   at its parent) decides what `self` is, and which field is named in the refusal; no more.
# Seen: at the string, Kubernetes puts the value before the message; at the parent, or with reason FieldValueForbidden,
#   it does not. With `fieldPath` the rule at the parent names the string nevertheless:
#
#   at the string: spec.repository: Invalid value: "harmless-value": must be a URL
#   at the string, FieldValueForbidden: spec.repository: Forbidden: must be a URL
#   at the parent: spec: Invalid value: must be a URL
#   at the parent, fieldPath: spec.repository: Invalid value: must be a URL
#
# Cause: the validator leaves the value out for the types object and array, for which it would be long, and for no
#   other.
# Why it matters: a refusal is printed by kubectl and kept in logs of clients and pipelines. A rule that refuses a value
#   because it is not to be seen (the URL of a script's repository with a password in it, a token among the arguments)
#   shows it to everybody who reads those, however carefully `message` is worded. Such a rule belongs at the parent,
#   with `fieldPath`.
set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
cd "$folder"

cat > go.mod <<'GOMOD'
module finding

go 1.25.0

require (
	k8s.io/apiextensions-apiserver v0.35.4
	k8s.io/apiserver v0.35.4
)
GOMOD

cat > main.go <<'GO'
// Refuses one value by the same rule at four places, with the validator of the API server.
package main

import (
	"context"
	"fmt"
	"runtime/debug"

	apiextensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	limits "k8s.io/apiserver/pkg/apis/cel"
)

var hundred int64 = 100

func rules(rule apiextensions.ValidationRule) schema.ValidationExtensions {
	if rule.Rule == "" {
		return schema.ValidationExtensions{}
	}
	rule.Message = "must be a URL"
	return schema.ValidationExtensions{XValidations: apiextensions.ValidationRules{rule}}
}

func refusal(atString, atParent apiextensions.ValidationRule) string {
	repository := schema.Structural{
		Generic:              schema.Generic{Type: "string"},
		ValueValidation:      &schema.ValueValidation{MaxLength: &hundred},
		ValidationExtensions: rules(atString),
	}
	spec := schema.Structural{
		Generic:              schema.Generic{Type: "object"},
		Properties:           map[string]schema.Structural{"repository": repository},
		ValidationExtensions: rules(atParent),
	}
	root := schema.Structural{
		Generic:    schema.Generic{Type: "object"},
		Properties: map[string]schema.Structural{"spec": spec},
	}
	object := map[string]any{"spec": map[string]any{"repository": "harmless-value"}}
	errs, _ := cel.NewValidator(&root, true, limits.PerCallLimit).Validate(
		context.Background(), nil, nil, object, nil, limits.RuntimeCELCostBudget)
	if len(errs) == 0 {
		return "accepted"
	}
	return errs.ToAggregate().Error()
}

func main() {
	info, _ := debug.ReadBuildInfo()
	for _, module := range info.Deps {
		if module.Path == "k8s.io/apiextensions-apiserver" {
			fmt.Println(module.Path, module.Version)
		}
	}
	const atString, atParent = "self.startsWith('https://')", "self.repository.startsWith('https://')"
	forbidden, none := apiextensions.FieldValueForbidden, apiextensions.ValidationRule{}
	say := func(place string, atString, atParent apiextensions.ValidationRule) {
		fmt.Println(place+":", refusal(atString, atParent))
	}
	say("at the string", apiextensions.ValidationRule{Rule: atString}, none)
	say("at the string, FieldValueForbidden", apiextensions.ValidationRule{Rule: atString, Reason: &forbidden}, none)
	say("at the parent", none, apiextensions.ValidationRule{Rule: atParent})
	say("at the parent, fieldPath", none, apiextensions.ValidationRule{Rule: atParent, FieldPath: ".repository"})
}
GO

cat > expected <<'TEXT'
k8s.io/apiextensions-apiserver v0.35.4
at the string: spec.repository: Invalid value: "harmless-value": must be a URL
at the string, FieldValueForbidden: spec.repository: Forbidden: must be a URL
at the parent: spec: Invalid value: must be a URL
at the parent, fieldPath: spec.repository: Invalid value: must be a URL
TEXT
go build -mod=mod -o finding .
./finding | tee seen
diff expected seen || { echo "Kubernetes behaves otherwise than this finding says" >&2; exit 1; }
