;; Fails without a reason.
;; plan: `plan` gave no reason
(func $plan (param i32 i32) (result i32) (i32.const 4))
