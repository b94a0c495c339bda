;; Leaves a candidate twice.
;; chain
;; plan: narrowed to module 0 twice
(func $plan (param i32 i32) (result i32)
    (call $answer_narrowed (i32.const 0) (i32.const 8192) (i32.const 2)) (i32.const 0))
