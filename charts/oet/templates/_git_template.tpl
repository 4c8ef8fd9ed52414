{{/* What the Pods of scripts from git get as well, as JSON: the cache, and what opens private repositories. */}}
{{- define "oet.gitTemplate" -}}
{{- $volumes := list (merge (dict "name" "oet-git-cache") (.Values.git.cache | default (dict "emptyDir" dict))) -}}
{{- $mounts := list (dict "name" "oet-git-cache" "mountPath" "/var/cache/oet") -}}
{{- with .Values.git.secret -}}
{{/* 0440: ssh refuses a key that its own user has and others may read; this one is root's. */}}
{{- $volumes = append $volumes (dict "name" "oet-git-secret" "secret" (dict "secretName" . "defaultMode" 288)) -}}
{{- $mounts = append $mounts (dict "name" "oet-git-secret" "mountPath" "/etc/oet/git" "readOnly" true) -}}
{{- end -}}
{{- $script := dict "name" "script" "volumeMounts" $mounts -}}
{{- toPrettyJson (dict "spec" (dict "volumes" $volumes "containers" (list $script))) -}}
{{- end }}
