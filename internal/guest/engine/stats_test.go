package engine

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/agent/api"
)

func TestProcessesFitIntoAFrame(t *testing.T) {
	var list []api.ProcessInfo
	for i := range 4096 {
		list = append(list, api.ProcessInfo{PID: i, State: "S", Command: []string{"cmd", strings.Repeat("\x01", 4000), "\u00e4\u00e4"}})
	}
	rep, err := fit(list)
	require.NoError(t, err)
	require.Len(t, rep.Processes, 4096)
	b, err := json.Marshal(rep)
	require.NoError(t, err)
	require.Less(t, len(b), api.MaxFrame)
	require.Equal(t, "cmd", rep.Processes[4095].Command[0])

	rep, err = fit([]api.ProcessInfo{{Command: []string{"sleep", "1"}}, {Command: []string{}}})
	require.NoError(t, err)
	require.Equal(t, []string{"sleep", "1"}, rep.Processes[0].Command)
	require.Equal(t, []string{"a", "b"}, cut([]string{"a", "b\u00e4"}, 5))
	require.Equal(t, []string{"ab", ""}, cut([]string{"ab", "c"}, 4))
}
