;; A mixture of more than `plan_items`.
;; breaks: plan_items
;; plan: a plan with 4097 picks, `plan_items` allows 4096
(func $plan (param i32 i32) (result i32)
    (call $answer_fixed (i32.const 0) (i32.const 8192) (i32.const 4097) (i32.const 0)) (i32.const 0))
