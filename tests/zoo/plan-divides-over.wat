;; A trap while planning.
;; plan: `plan` | integer overflow
(func $plan (param i32 i32) (result i32) (i32.div_s (i32.const -2147483648) (i32.const -1)))
