#!/usr/bin/env bash
# '%s'.format([object.spec]) compiles in an admission policy; '%s'.format([self.spec]) in a definition's rule does not.
#
# Version: Kubernetes 1.35.4 (k8s.io/apiserver and k8s.io/apiextensions-apiserver v0.35.4, github.com/google/cel-go
#   v0.26.0).
# Expected: both are CEL, in the same API server, from the same base environment with the same string library: what
#   works in one works in the other (x-kubernetes-validations of a CustomResourceDefinition).
# Seen ('%s'.format([object.spec]) == '{"script":"scan.py"}', and the same with self.spec):
#
#   policy: compiles, true
#   definition: refused: string clause can only be used on strings, bools, bytes, ints, doubles, maps, lists, types, durations, and timestamps, was given selfType.spec
#   definition, dyn(self.spec): compiles, true
#   definition, spec of additionalProperties: compiles, true
#   policy's type checker: warns: string clause can only be used on strings, bools, bytes, ints, doubles, maps, lists, types, durations, and timestamps, was given Execution.spec
#   policy's type checker, dyn(object.spec): no warning
#
# Cause: not the evaluation, which can format an object, but cel-go's check of literal formats while compiling. It
#   accepts dyn, maps and lists, and no object types. A policy declares `object` as dyn. A rule's `self` has the type of
#   the schema: an object with `properties` is an object type, one with `additionalProperties` a map. dyn() passes the
#   check in both places. (The limit of a definition's estimated cost holds for such a rule all the same; it is not part
#   of this finding.)
# Why it matters: a limit on the size of a whole spec (arguments, Pod template) that works as a policy cannot be moved
#   into the definition as it is: the API server refuses the definition. And of the policy, though it works, the type
#   checker that writes status.typeChecking says that it does not compile, as soon as it knows the kind's schema. With
#   dyn() neither happens.
set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
cd "$folder"

cat > go.mod <<'GOMOD'
module finding

go 1.25.0

require (
	github.com/google/cel-go v0.26.0
	k8s.io/api v0.35.4
	k8s.io/apiextensions-apiserver v0.35.4
	k8s.io/apimachinery v0.35.4
	k8s.io/apiserver v0.35.4
	k8s.io/kube-openapi v0.0.0-20250910181357-589584f1c912
)
GOMOD

cat > main.go <<'GO'
// Compiles and evaluates one CEL expression as the API server does: in a policy, and in a definition's rule.
package main

import (
	"context"
	"fmt"
	"log"
	"regexp"
	"runtime/debug"

	"github.com/google/cel-go/cel"
	admission "k8s.io/api/admissionregistration/v1"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	structural "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	definition "k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"
	policy "k8s.io/apiserver/pkg/admission/plugin/cel"
	"k8s.io/apiserver/pkg/admission/plugin/policy/validating"
	limits "k8s.io/apiserver/pkg/apis/cel"
	"k8s.io/apiserver/pkg/cel/environment"
	"k8s.io/kube-openapi/pkg/validation/spec"
)

var object = map[string]any{
	"apiVersion": "example.org/v1", "kind": "Execution", "metadata": map[string]any{"name": "one"},
	"spec": map[string]any{"script": "scan.py"},
}

// brief returns what a compiler complained about, without the place and the number in the type's name.
func brief(message string) string {
	found := regexp.MustCompile(`error during formatting: (.*[A-Za-z])[0-9]+(\.spec)`).FindStringSubmatch(message)
	if found == nil {
		return message
	}
	return found[1] + found[2]
}

type expression string

func (e expression) GetExpression() string    { return string(e) }
func (e expression) ReturnTypes() []*cel.Type { return []*cel.Type{cel.BoolType} }

func inPolicy(rule string) string {
	base := environment.MustBaseEnvSet(environment.DefaultCompatibilityVersion())
	compiled := policy.NewCompiler(base).CompileCELExpression(
		expression(rule), policy.OptionalVariableDeclarations{}, environment.NewExpressions)
	if compiled.Error != nil {
		return "refused: " + brief(compiled.Error.Detail)
	}
	value, _, err := compiled.Program.Eval(map[string]any{"object": object})
	if err != nil {
		log.Fatal(err)
	}
	return fmt.Sprint("compiles, ", value)
}

var hundred int64 = 100

var text = structural.Structural{
	Generic:         structural.Generic{Type: "string"},
	ValueValidation: &structural.ValueValidation{MaxLength: &hundred},
}

var withProperties = structural.Structural{
	Generic:    structural.Generic{Type: "object"},
	Properties: map[string]structural.Structural{"script": text},
}

var withAdditionalProperties = structural.Structural{
	Generic:              structural.Generic{Type: "object"},
	AdditionalProperties: &structural.StructuralOrBool{Structural: &text},
}

func inDefinition(specSchema structural.Structural, rule string) string {
	root := structural.Structural{
		Generic:    structural.Generic{Type: "object"},
		Properties: map[string]structural.Structural{"spec": specSchema},
		ValidationExtensions: structural.ValidationExtensions{
			XValidations: apiextensions.ValidationRules{{Rule: rule}},
		},
	}
	errs, _ := definition.NewValidator(&root, true, limits.PerCallLimit).Validate(
		context.Background(), nil, nil, object, nil, limits.RuntimeCELCostBudget)
	if len(errs) > 0 {
		return "refused: " + brief(errs[0].Detail)
	}
	return "compiles, true"
}

type schemas struct{}

func (schemas) ResolveSchema(schema.GroupVersionKind) (*spec.Schema, error) {
	inner := *new(spec.Schema).Typed("object", "").SetProperty("script", *spec.StringProperty())
	return new(spec.Schema).Typed("object", "").SetProperty("spec", inner), nil
}

// inTypeChecker returns what would be written to the policy's status.typeChecking.
func inTypeChecker(rule string) string {
	version := schema.GroupVersion{Group: "example.org", Version: "v1"}
	mapper := meta.NewDefaultRESTMapper([]schema.GroupVersion{version})
	mapper.Add(version.WithKind("Execution"), meta.RESTScopeNamespace)
	var resources admission.NamedRuleWithOperations
	resources.APIGroups, resources.APIVersions = []string{version.Group}, []string{version.Version}
	resources.Resources = []string{"executions"}
	var checked admission.ValidatingAdmissionPolicy
	checked.Spec.MatchConstraints = &admission.MatchResources{
		ResourceRules: []admission.NamedRuleWithOperations{resources},
	}
	checked.Spec.Validations = []admission.Validation{{Expression: rule}}
	checker := validating.TypeChecker{SchemaResolver: schemas{}, RestMapper: mapper}
	warnings := checker.Check(&checked)
	if len(warnings) == 0 {
		return "no warning"
	}
	return "warns: " + brief(warnings[0].Warning)
}

func main() {
	info, _ := debug.ReadBuildInfo()
	for _, module := range info.Deps {
		switch module.Path {
		case "github.com/google/cel-go", "k8s.io/apiserver", "k8s.io/apiextensions-apiserver":
			fmt.Println(module.Path, module.Version)
		}
	}
	rule := func(what string) string { return "'%s'.format([" + what + `]) == '{"script":"scan.py"}'` }
	fmt.Println("policy:", inPolicy(rule("object.spec")))
	fmt.Println("definition:", inDefinition(withProperties, rule("self.spec")))
	fmt.Println("definition, dyn(self.spec):", inDefinition(withProperties, rule("dyn(self.spec)")))
	fmt.Println("definition, spec of additionalProperties:", inDefinition(withAdditionalProperties, rule("self.spec")))
	fmt.Println("policy's type checker:", inTypeChecker(rule("object.spec")))
	fmt.Println("policy's type checker, dyn(object.spec):", inTypeChecker(rule("dyn(object.spec)")))
}
GO

cat > expected <<'TEXT'
github.com/google/cel-go v0.26.0
k8s.io/apiextensions-apiserver v0.35.4
k8s.io/apiserver v0.35.4
policy: compiles, true
definition: refused: string clause can only be used on strings, bools, bytes, ints, doubles, maps, lists, types, durations, and timestamps, was given selfType.spec
definition, dyn(self.spec): compiles, true
definition, spec of additionalProperties: compiles, true
policy's type checker: warns: string clause can only be used on strings, bools, bytes, ints, doubles, maps, lists, types, durations, and timestamps, was given Execution.spec
policy's type checker, dyn(object.spec): no warning
TEXT
go build -mod=mod -o finding .
./finding | tee seen
diff expected seen || { echo "Kubernetes behaves otherwise than this finding says" >&2; exit 1; }
