;; A trap while planning.
;; plan: `plan` | integer divide by zero
(func $plan (param i32 i32) (result i32) (i32.div_s (i32.const 1) (i32.const 0)))
