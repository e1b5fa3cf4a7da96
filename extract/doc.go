// Package extract copies the bytes of chosen files out of host files, as a map tells where they lie: into a folder, a
// tar stream, or one after another. It knows no image format and no file system: a map and the host files are all it
// reads.
//
// What it is given is hostile: the map's paths, targets, sizes and extents come from a guest. Nothing is written
// outside the folder that was named, no existing file is overwritten unless that was asked for, and every file of the
// map that was chosen has a result: it is whole ("ok"), has gaps ("partial", under another name), could not be made
// ("failed"), or was left out on purpose ("skipped", with the reason). A file appears under its name only when all of
// its bytes are there.
//
// Files are read in the order in which they lie in the host files, within a window of the map, by several workers.
// Memory is bounded by the window, not by the map.
package extract
