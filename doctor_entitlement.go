package arcbox

import (
	"fmt"
	"strings"
)

const virtualizationEntitlement = "com.apple.security.virtualization"

// entitlementFinding judges what codesign prints of a program's entitlements. It is pure.
func entitlementFinding(exe, entitlements string, err error) []Finding {
	if err == nil && strings.Contains(entitlements, virtualizationEntitlement) {
		return nil
	}
	return []Finding{{
		Kind:    FindingNoEntitlement,
		Message: fmt.Sprintf("%s does not have the entitlement %s", exe, virtualizationEntitlement),
		Fix: "write a property list with that key set to true, and sign the program with it: " +
			"codesign --force --sign - --entitlements arcbox.entitlements " + exe,
	}}
}
