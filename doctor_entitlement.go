package arcbox

import (
	"fmt"
	"strings"

	"github.com/arcboxlabs/arcbox-go/vm/vz"
)

// entitlementFinding judges what codesign prints of a program's entitlements. It is pure.
func entitlementFinding(exe, entitlements string, err error) []Finding {
	if err == nil && strings.Contains(entitlements, vz.Entitlement) {
		return nil
	}
	return []Finding{{
		Kind: FindingNoEntitlement, Fatal: true,
		Message: fmt.Sprintf("%s does not have the entitlement %s", exe, vz.Entitlement),
		Fix:     (&vz.EntitlementError{Program: exe}).Fix(),
	}}
}
