package share

// fromDarwin returns the number of an error of macOS in the guest. One that Linux does not have is EIO.
func fromDarwin(n int) errno {
	const firstOwn = 35 // those below are the same on both systems, but for EDEADLK
	others := [...]errno{
		11, 115, 114, 88, 89, 90, 91, 92, 93, 94, // 35
		95, 96, 97, 98, 99, 100, 101, 102, 103, 104, // 45
		105, 106, 107, 108, 109, 110, 111, 40, 36, 112, // 55
		113, 39, 0, 87, 122, 116, 66, 0, 0, 0, // 65
		0, 0, 37, 38, 0, 0, 0, 0, 0, 75, // 75
		0, 0, 0, 0, 125, 43, 42, 84, 61, 74, // 85
		72, 61, 67, 63, 60, 71, 62, 95, 0, 131, // 95
		130, // 105
	}
	switch {
	case n == 11:
		return 35
	case n > 0 && n < firstOwn:
		return errno(n)
	case n >= firstOwn && n-firstOwn < len(others) && others[n-firstOwn] != 0:
		return others[n-firstOwn]
	}
	return eIO
}
