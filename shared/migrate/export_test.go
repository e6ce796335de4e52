package migrate

// UpFiles is Up with other migrations.
var UpFiles = up

// LockID is the advisory lock's.
const LockID int64 = lockID
