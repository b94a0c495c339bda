;; A trap while deciding rows.
;; traps: `route` | out of bounds memory access
(func $route (param i32 i32 i32) (result i32) (i32.load (i32.const -4)))
