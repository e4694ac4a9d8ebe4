package box

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

const (
	testPasswd = "# comment\nroot:x:0:0:root:/root:/bin/sh\nbroken\napp:x:1000:1001::/home/app:\n7:x:8:9::/named-seven:\nbad:x:notanumber:0::/:\n\n"
	testGroup  = "root:x:0:\napp:x:1001:\nwheel:x:10:root,app\naudio:x:29:other,app\nbad:x:nan:app\nshort:x\n"
)

func TestLookupUser(t *testing.T) {
	for spec, want := range map[string]user{
		"":           {0, 0, []uint32{10}, "/root"},
		"0":          {0, 0, []uint32{10}, "/root"},
		"root":       {0, 0, []uint32{10}, "/root"},
		"app":        {1000, 1001, []uint32{10, 29}, "/home/app"},
		"1000":       {1000, 1001, []uint32{10, 29}, "/home/app"},
		"app:wheel":  {1000, 10, nil, "/home/app"},
		"app:77":     {1000, 77, nil, "/home/app"},
		"app:":       {1000, 1001, []uint32{10, 29}, "/home/app"},
		":wheel":     {0, 10, nil, "/root"},
		"55":         {55, 0, nil, "/"},
		"55:66":      {55, 66, nil, "/"},
		"7":          {8, 9, nil, "/named-seven"}, // a name that is a number
		"4294967294": {4294967294, 0, nil, "/"},
	} {
		t.Run(spec, func(t *testing.T) {
			got, err := lookupUser(spec, []byte(testPasswd), []byte(testGroup))
			require.NoError(t, err)
			require.Equal(t, want, got)
		})
	}
	for _, spec := range []string{"nobody", "app:nobody", "bad", "4294967295", "-1", "app:4294967295", "app:bad"} {
		_, err := lookupUser(spec, []byte(testPasswd), []byte(testGroup))
		require.ErrorIs(t, err, errs.ErrInvalid, spec)
	}
	got, err := lookupUser("", nil, nil)
	require.NoError(t, err)
	require.Equal(t, user{home: "/root"}, got)
}

func FuzzLookupUser(f *testing.F) {
	f.Add("app:wheel", testPasswd, testGroup)
	f.Add("1000", "\x00:::::", ":::")
	f.Fuzz(func(t *testing.T, spec, passwd, group string) {
		u, err := lookupUser(spec, []byte(passwd), []byte(group))
		if err != nil {
			require.ErrorIs(t, err, errs.ErrInvalid)
			return
		}
		require.LessOrEqual(t, u.uid, uint32(maxUserID))
		require.LessOrEqual(t, u.gid, uint32(maxUserID))
		require.LessOrEqual(t, len(u.groups), maxGroups)
		require.NotEmpty(t, u.home)
	})
}

func TestParseCaps(t *testing.T) {
	def, err := parseCaps(nil)
	require.NoError(t, err)
	require.Equal(t, uint64(0xa80425fb), def)
	none, err := parseCaps([]string{})
	require.NoError(t, err)
	require.Zero(t, none)
	all, err := parseCaps([]string{"all"})
	require.NoError(t, err)
	require.Equal(t, uint64(1<<41-1), all)
	some, err := parseCaps([]string{"CAP_CHOWN", "cap_sys_admin", "CHECKPOINT_RESTORE"})
	require.NoError(t, err)
	require.Equal(t, uint64(1|1<<21|1<<40), some)
	_, err = parseCaps([]string{"CAP_FLY"})
	require.ErrorIs(t, err, errs.ErrInvalid)
	require.Len(t, strings.Fields(capNames), 41)
}
