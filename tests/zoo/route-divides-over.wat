;; A trap while deciding rows.
;; traps: `route` | integer overflow
(func $route (param i32 i32 i32) (result i32) (i32.div_s (i32.const -2147483648) (i32.const -1)))
