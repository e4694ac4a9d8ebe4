// Package house holds the rules that the code of arcbox keeps. It has no code of its own: its tests read the whole
// source tree and name every place that breaks a rule. Each rule is shown to find a violation that was planted for it.
//
// The rules are about the direction of imports (imports_test.go), the size of files and functions, documentation, global
// state, and what a library does not do to its caller's process (rules_test.go). An exception is a line with its reason
// in exceptions_test.go.
package house
