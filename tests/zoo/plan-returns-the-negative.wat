;; A code that there is not.
;; plan: `plan` returned -2147483648, expected 0 to 4
(func $plan (param i32 i32) (result i32) (i32.const -2147483648))
