;; Built for WASI.
;; load: unknown import | wasi_snapshot_preview1 | fd_write
(module (import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 1)
    (func (export "polyskill_v1_init") (param i32) (result i32) unreachable)
    (func (export "polyskill_v1_plan") (param i32 i32) (result i32) unreachable))
