//go:build !darwin

package arcbox

import "context"

func checkSystem(context.Context, Config) []Finding { return nil }
