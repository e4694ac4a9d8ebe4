package disk

import (
	"encoding/binary"
	"fmt"
	"os"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// The layout of an empty qcow2 image: header, table of reference counts, one block of those, table of the first level. Each
// takes a cluster.
const (
	qcowMagic       = "QFI\xfb"
	qcowVersion     = 3
	qcowClusterBits = 16
	qcowCluster     = 1 << qcowClusterBits
	qcowHeader      = 104
	qcowRefcount16  = 4 // the order of 16-bit reference counts
	qcowL2Covers    = qcowCluster / 8 * qcowCluster
	maxOverlay      = qcowCluster / 8 * qcowL2Covers // what one cluster of the first level covers: 4 TiB
)

// CreateOverlay makes an empty qcow2 image of a size at path, which must not exist: a layer that holds what is written over
// another image, which it does not name. It does not sync.
func CreateOverlay(path string, size int64) error {
	if size <= 0 || size > maxOverlay || size%512 != 0 {
		return fmt.Errorf("%w size %d of an overlay: use a multiple of 512 up to %d", errs.ErrInvalid, size, int64(maxOverlay))
	}
	b := make([]byte, 4*qcowCluster)
	be := binary.BigEndian
	copy(b, qcowMagic)
	be.PutUint32(b[4:], qcowVersion)
	be.PutUint32(b[20:], qcowClusterBits)
	be.PutUint64(b[24:], uint64(size))
	be.PutUint32(b[36:], uint32((size+qcowL2Covers-1)/qcowL2Covers)) // entries of the first level
	be.PutUint64(b[40:], 3*qcowCluster)                              // where that is
	be.PutUint64(b[48:], qcowCluster)                                // where the table of reference counts is
	be.PutUint32(b[56:], 1)                                          // its clusters
	be.PutUint32(b[96:], qcowRefcount16)
	be.PutUint32(b[100:], qcowHeader)
	be.PutUint64(b[qcowCluster:], 2*qcowCluster) // the first block of reference counts
	for i := range 4 {
		be.PutUint16(b[2*qcowCluster+2*i:], 1)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("make overlay: %w", err)
	}
	return nil
}
