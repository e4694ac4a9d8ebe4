package share

import (
	"path"
	"slices"
	"sync"
	"time"
)

// identity tells files apart, also one from another that has got its inode number.
type identity struct {
	dev, ino uint64
	born     int64 // 0 where the file system does not know
	kind     uint32
}

// node is a file that the guest knows.
type node struct {
	id      uint64
	is      identity
	lookups uint64 // how often the guest was told of it, less what it has forgotten
	links   []link // the names that it is known by, the newest last; none of the root
	open    []int  // who has it open, for one that has no name any more: descriptors on Linux, else numbers of handles

	told  time.Time // when the guest was told of it because it has asked
	asked asked     // of a directory: for what is in it
}

// link is a name in a directory.
type link struct {
	dir  *node
	name string
}

// nodes are the files that a guest knows. Its methods may be called from many goroutines.
type nodes struct {
	mu     sync.Mutex
	byID   map[uint64]*node
	byFile map[identity]*node
	byName map[link]*node
	next   uint64
	heat   heat
}

func newNodes(root identity) *nodes {
	r := &node{id: rootID, is: root, lookups: 1}
	return &nodes{byID: map[uint64]*node{rootID: r}, byFile: map[identity]*node{root: r}, byName: make(map[link]*node), next: rootID + 1}
}

// get returns the node with a number.
func (t *nodes) get(id uint64) (*node, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.byID[id]; n != nil {
		return n, nil
	}
	return nil, eSTALE
}

// meet returns the node of a file that was found under a name, and counts that the guest is told of it.
func (t *nodes) meet(dir *node, name string, is identity) (*node, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.byFile[is]
	if n == nil {
		if len(t.byID) >= maxNodes {
			return nil, eNFILE
		}
		n = &node{id: t.next, is: is}
		t.next++
		t.byID[n.id], t.byFile[is] = n, n
	}
	n.lookups++
	if n.id != rootID {
		t.link(n, link{dir, name})
	}
	return n, nil
}

// link notes a name as the newest one of a node. No other one has it then. The caller holds mu.
func (t *nodes) link(n *node, l link) {
	if old := t.byName[l]; old != nil {
		t.unlink(old, l)
	}
	if len(n.links) == maxLinks {
		t.unlink(n, n.links[0])
	}
	n.links = append(n.links, l)
	t.byName[l] = n
}

// unlink takes a name from a node. The caller holds mu.
func (t *nodes) unlink(n *node, l link) {
	n.links = slices.DeleteFunc(n.links, func(other link) bool { return other == l })
	delete(t.byName, l)
}

// forget takes back that the guest was told of a node.
func (t *nodes) forget(id, count uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.byID[id]
	if n == nil || id == rootID {
		return
	}
	n.lookups -= min(count, n.lookups)
	t.drop(n)
}

// drop forgets a node that the guest does not know any more. One that is open stays. The caller holds mu.
func (t *nodes) drop(n *node) {
	if n.lookups > 0 || len(n.open) > 0 || n.id == rootID {
		return
	}
	for _, l := range n.links {
		delete(t.byName, l)
	}
	n.links = nil
	delete(t.byID, n.id)
	if t.byFile[n.is] == n {
		delete(t.byFile, n.is)
	}
}

// told notes that the guest was told of a node because it has asked, and returns which directory it should read and how
// many entries of it; 0 is none.
func (t *nodes) told(id uint64, now time.Time) (string, int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.byID[id]
	if n == nil || len(n.links) == 0 {
		return "", 0
	}
	dir := n.links[len(n.links)-1].dir
	entries := t.heat.ask(&n.told, &dir.asked, now)
	if entries == 0 || dir.id == rootID {
		return ".", entries
	}
	if len(dir.links) == 0 {
		return "", 0
	}
	p, ok := pathOf(dir.links[len(dir.links)-1])
	if !ok {
		return "", 0
	}
	return p, entries
}

// removed notes that a name is gone.
func (t *nodes) removed(dir *node, name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := link{dir, name}
	if n := t.byName[l]; n != nil {
		t.unlink(n, l)
	}
}

// renamed notes that a name has become another one, or that the two were exchanged.
func (t *nodes) renamed(from, to link, exchange bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	moved, other := t.byName[from], t.byName[to]
	for l, n := range map[link]*node{from: moved, to: other} {
		if n != nil {
			t.unlink(n, l)
		}
	}
	if moved != nil {
		t.link(moved, to)
	}
	if other != nil && exchange {
		t.link(other, from)
	}
}

// maxDepth bounds the elements of a path. A guest that makes a directory a child of itself finds no file.
const maxDepth = 2048

// places returns the names of a node, the newest first.
func (t *nodes) places(n *node) []link {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := slices.Clone(n.links)
	slices.Reverse(out)
	return out
}

// paths returns where a node may be found from the root, the newest first.
func (t *nodes) paths(n *node) []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n.id == rootID {
		return []string{"."}
	}
	var out []string
	for _, l := range slices.Backward(n.links) {
		if p, ok := pathOf(l); ok {
			out = append(out, p)
		}
	}
	return out
}

// pathOf returns the path of a name. The caller holds mu.
func pathOf(l link) (string, bool) {
	parts := []string{l.name}
	for n := l.dir; n.id != rootID; {
		if len(n.links) == 0 || len(parts) > maxDepth {
			return "", false
		}
		last := n.links[len(n.links)-1]
		parts = append(parts, last.name)
		n = last.dir
	}
	slices.Reverse(parts)
	return path.Join(parts...), true
}

// reading notes that a directory is being read, or that it is not any more, and its size once that is known.
func (t *nodes) reading(n *node, change, size int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n.asked.reading += change
	if size > 0 {
		n.asked.size = size
	}
}

// handles returns who has a node open.
func (t *nodes) handles(n *node) []int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(n.open)
}

// opened notes that a node is open, closed takes that back.
func (t *nodes) opened(n *node, fd int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n.open = append(n.open, fd)
}

func (t *nodes) closed(n *node, fd int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n.open = slices.DeleteFunc(n.open, func(other int) bool { return other == fd })
	t.drop(n)
}
