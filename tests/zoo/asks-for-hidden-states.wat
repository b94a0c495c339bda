;; Wants hidden states without the operator's grant.
;; ungranted
;; plan: capability `hidden`
(func $route (param i32 i32 i32) (result i32) (call $good (local.get 1) (local.get 2)))
