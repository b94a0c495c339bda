;; A trap while planning.
;; plan: `plan` | out of bounds memory access
(func $plan (param i32 i32) (result i32) (i32.load (i32.const -4)))
