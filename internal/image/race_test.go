//go:build race

package image

// raceFactor is how much more memory a program takes under the race detector.
const raceFactor = 4
